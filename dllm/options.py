"""What a setting or an option of a part may be: its annotation says it, and one check reads it.

    threshold: Probability = 0.9
    radius: Annotated[int, Range(0, MOST)] = 4

Every dataclass that derives from `Options` has its values checked when it is made, whoever makes
it: a call, text of the command line, YAML or JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, cast

import torch

MOST = 2**20  # of columns, steps or tokens: more than any canvas has, and no memory to speak of
LARGEST = 1e9  # of any other number: for who wants one that is never passed

_LARGE = 2**10  # ends from here on are named only to who went beyond
Reader = Callable[[Any], Any]  # returns a value as its type has it, or raises MismatchError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; NaN and infinity are in no range."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # without `least` itself
    below: bool = False  # without `most` itself
    besides: tuple[float, ...] = ()  # numbers outside that are allowed too
    words: str = ""  # for a message, in place of the numbers

    def __contains__(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return (low and high) or value in self.besides

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.most < _LARGE:
            ends = "(" if self.above else "[", ")" if self.below else "]"
            return f"in {ends[0]}{_short(self.least)}, {_short(self.most)}{ends[1]}"
        return self.complaint(self.least - 1)

    def complaint(self, value: float) -> str:
        """Returns what a number outside must be: the end that it is beyond."""
        if self.words or self.most <= 1:
            return str(self)
        if value > self.most:
            return f"at most {_short(self.most)}"
        if self.least == 0 and (self.above or self.most == LARGEST):
            return "positive" if self.above else "0 or more"
        return f"at least {_short(self.least)}"


Probability = Annotated[float, Range(0, 1)]
Share = Annotated[float, Range(0, 1, words="a share between 0 and 1")]
Positive = Annotated[float, Range(0, LARGEST, above=True)]
Width = Annotated[float, Range(0, MOST, above=True)]  # columns, or parts of one
Amount = Annotated[float, Range(0, LARGEST)]  # none or more of something that has parts
Count = Annotated[int, Range(1, MOST)]
CountOrNone = Annotated[int, Range(0, MOST)]  # 0 is one of the counts
Rows = Annotated[int, Range(1, 256)]  # of a forward pass, for each row of the batch
TokenId = Annotated[int, Range(0, 2**31 - 1, words="a token id")]
Seed = Annotated[int, Range(-(2**62), 2**62)]


class Options:
    """A dataclass whose fields are checked against their annotations whenever one is made.

    What relates several of them is checked in `__post_init__`, which finds each by itself right.
    """

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        own = vars(cls).get("__post_init__")
        if own is not None:  # a method that relates its options cannot forget to check each

            @functools.wraps(own)
            def checked(self: Options) -> None:
                check(self)
                own(self)

            cls.__post_init__ = checked  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check(self)


def check(options: Any) -> None:
    """Raises ValueError when a field of a dataclass is not what its annotation allows.

    A number of another library becomes Python's, a whole number where any is allowed a float, and
    a list where a tuple is meant a tuple, so that equal options are equal.
    """
    for name, read, allowed in _readers(type(options)):  # type: ignore[arg-type]
        value = getattr(options, name)
        same = _read(name, value, read, allowed)
        if same is not value:
            object.__setattr__(options, name, same)


def checked(name: str, value: Any, hint: Any) -> Any:
    """Returns a single value as its annotated type has it, as `check` does those of a dataclass."""
    return _read(name, value, reader(hint), describe(hint))


def _read(name: str, value: Any, read: Reader, allowed: str) -> Any:
    try:
        return read(value)
    except MismatchError as error:
        wanted = str(error) or allowed
        raise ValueError(f"{name}={shown(value)} must be {wanted}") from None


class MismatchError(Exception):
    """A value is not of a type; the text says which numbers are, where it is a number."""


@functools.cache
def _readers(owner: type) -> list[tuple[str, Reader, str]]:
    """Returns the name, the reader and what is allowed of each field that can be given."""
    hints = typing.get_type_hints(owner, include_extras=True)
    names = [field.name for field in dataclasses.fields(owner) if field.init]
    return [(name, reader(hints[name]), describe(hints[name])) for name in names]


def reader(hint: Any) -> Reader:
    """Returns what reads a value of an annotated type; it raises MismatchError for any other."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _ranged(reader(args[0]), [extra for extra in args[1:] if isinstance(extra, Range)])
    if origin in (typing.Union, types.UnionType):
        return _either([reader(arg) for arg in args], optional=type(None) in args)
    if origin is Literal:
        return _when(lambda value: any(value is arg or _same(value, arg) for arg in args))
    if origin is tuple and args[1:] == (...,):
        return _several(reader(args[0]))
    if origin is list:
        return _listed(reader(args[0]))
    if hint in (int, float):
        return _whole if hint is int else _number
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return lambda value: value  # nothing that Python can tell
    return _when(lambda value: isinstance(value, kind))


def describe(hint: Any) -> str:
    """Returns in words what an annotated type allows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        ranges = [extra for extra in args[1:] if isinstance(extra, Range)]
        worded = [extra.words for extra in ranges if extra.words]
        if worded or not ranges:
            return worded[0] if worded else describe(args[0])
        joint = " of " if str(ranges[0]).startswith("at ") else ", "
        return joint.join([describe(args[0]), *map(str, ranges)])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is Literal:
        choices = list(map(repr, args))
        return f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
    if origin in (tuple, list):
        return f"a list of {describe(args[0]).removeprefix('a ')}s"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words |= {Mapping: "a mapping", type(None): "none"}
    kind = origin or hint
    return words.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _whole(value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise MismatchError
    return int(value)


def _number(value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise MismatchError
    try:
        number = float(value)
    except OverflowError:
        raise MismatchError from None
    if not math.isfinite(number):
        raise MismatchError
    kind: Any = type(value)  # a subclass, such as numpy's, is not written as a number is
    return cast("float", value) if kind is float else number


def _when(holds: Callable[[Any], bool]) -> Reader:
    def read(value: Any) -> Any:
        if not holds(value):
            raise MismatchError
        return value

    return read


def _ranged(read: Reader, ranges: list[Range]) -> Reader:
    def within(value: Any) -> Any:
        value = read(value)
        for allowed in ranges:
            if value not in allowed:
                raise MismatchError(allowed.complaint(value))
        return value

    return within


def _either(readers: list[Reader], *, optional: bool) -> Reader:
    def read(value: Any) -> Any:
        reasons = []
        for one in readers:
            try:
                return one(value)
            except MismatchError as error:
                reasons.append(str(error))
        reason = next(filter(None, reasons), "")
        raise MismatchError(f"{reason}, or none" if reason and optional else reason)

    return read


def _several(read: Reader) -> Reader:
    """Reads a tuple; a list, which YAML and JSON have, and a single value are taken for one."""

    def all_of(value: Any) -> tuple[Any, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(map(read, values))

    return all_of


def _listed(read: Reader) -> Reader:
    def all_of(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise MismatchError
        return list(map(read, value))

    return all_of


def plain(value: Any) -> Any:
    """Returns a value as JSON has it, a dtype by its name; MismatchError for what JSON lacks."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping) and all(isinstance(key, str | Integral) for key in value):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    raise MismatchError


def _same(value: Any, choice: Any) -> bool:
    return type(value) is type(choice) and bool(value == choice)


def _short(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


def shown(value: Any) -> str:
    """Returns a value for a message: on one line, and no longer than a reader wants."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
