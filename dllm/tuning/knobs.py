"""The options of a scheduler that a search may vary, read off what the scheduler says of itself.

A field that is a number within a range, one of several words, or a scheduler inside is a knob;
token ids, files and switches of another kind stay as they are.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Annotated, Any, Literal

from dllm import schedulers
from dllm.options import Range, TokenId
from dllm.schedulers import Scheduler

Value = float | int | str | None
# What a probability begins with beside its default: nearly certain text is told apart close to 1,
# products of probabilities far below it.
_SURE = (0.3, 0.6, 0.9, 0.97, 0.99)
_INNER = ("threshold:0.9", "threshold:0.97", "threshold:0.99")
_BESIDE = (0.5, 0.75, 1.33, 2.0)
_FAR = (0.1, 0.3, 3.0)


@dataclass(frozen=True)
class Knob:
    """One option: its default, and the numbers or words that it may be."""

    name: str
    default: Any
    kind: Literal["probability", "amount", "count", "word"]
    within: Range
    words: tuple[str, ...] = ()

    def starts(self, most: int) -> list[Value]:
        """Returns values that a search begins with, the default first; `most` tokens at most."""
        if self.kind == "word":
            return list(self.words) if self.default not in self.words else [self.default]
        if self.kind == "probability":
            values: Sequence[float] = _SURE
        elif self.default is None:
            values = (most // 2, most // 4)
        else:
            values = [self._rounded(self.default * factor) for factor in _FAR]
        return [self.default, *self._allowed(values)]

    def beside(self, value: Value, most: int) -> list[Value]:
        """Returns the values beside one: a quarter and a half of the way to twice or half of it."""
        if self.kind == "word":
            return [word for word in self.words if word != value]
        if value is None:
            return self.starts(most)[1:]
        assert not isinstance(value, str)
        if self.kind == "probability" and value > 0.5:  # what matters is how far from 1 it is
            return self._allowed(1 - _two_digits((1 - value) * f) for f in _BESIDE)
        near = [self._rounded(value * factor) for factor in _BESIDE]
        return [one for one in self._allowed(near) if one != value]

    def _rounded(self, value: float) -> float:
        return round(value) if self.kind == "count" else _two_digits(value)

    def _allowed(self, values: typing.Iterable[float]) -> list[Value]:
        tidy = (round(value, 6) for value in values)
        return list(dict.fromkeys(one for one in tidy if one in self.within))


def knobs_of(name: str) -> list[Knob]:
    """Returns the knobs of a scheduler, first the one that trades accuracy for cost.

    That is the scheduler inside, if there is one, else the first probability, else the first
    number.
    """
    part = schedulers.registry.get(name)
    hints = typing.get_type_hints(part, include_extras=True)
    usual = part()
    found = [
        knob
        for field in fields(part)
        if (knob := _knob(field, hints[field.name], getattr(usual, field.name))) is not None
    ]
    found.sort(key=_rank)  # stable: of two alike the one that is declared first
    return found


def presets_of(name: str) -> Iterator[dict[str, Value]]:
    """Yields the published settings of a scheduler that consist of knobs, and of names of files."""
    known = {knob.name for knob in knobs_of(name)}
    for options in getattr(schedulers.registry.get(name), "presets", {}).values():
        named = {key for key, value in options.items() if isinstance(value, str)}
        if set(options) - named <= known and all(_plain(value) for value in options.values()):
            yield dict(options)


def _rank(knob: Knob) -> int:
    closed = knob.kind == "probability" and not (knob.within.above or knob.within.below)
    ranks = (knob.words == _INNER, closed, knob.kind in ("amount", "count") and knob.default != 0)
    return [*ranks, True].index(True)


def _knob(field: Field[Any], hint: Any, usual: Any) -> Knob | None:
    """Returns a field as a knob; None for what is none."""
    hint, optional = _without_none(hint)
    default = usual if field.default is MISSING else field.default
    if hint is Scheduler:
        return Knob(field.name, None, "word", Range(), _INNER)
    if typing.get_origin(hint) is Literal:
        words = typing.get_args(hint)
        ok = len(words) > 1 and all(isinstance(word, str) for word in words)
        return Knob(field.name, default, "word", Range(), words) if ok else None
    if typing.get_origin(hint) is not Annotated or hint == TokenId:
        return None
    number, *extra = typing.get_args(hint)
    within = next((one for one in extra if isinstance(one, Range)), None)
    if within is None or number not in (int, float) or (default is None and not optional):
        return None
    if number is int:
        return Knob(field.name, default, "count", within)
    share = within.least == 0 and within.most <= 2
    if not share and default is None:
        return None
    return Knob(field.name, default, "probability" if share else "amount", within)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Returns a type without None, and whether None was one of it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return (args[0] if len(args) == 1 else hint), True
    return hint, False


def _plain(value: Any) -> bool:
    return value is None or (isinstance(value, float | int | str) and not isinstance(value, bool))


def _two_digits(value: float) -> float:
    """Returns two significant digits, so that two ways to a value meet."""
    return round(value, 1 - math.floor(math.log10(abs(value)))) if value else 0.0
