"""What is to be filled: a text with gaps as users give it, and the gaps of a row of a canvas."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from numbers import Integral

from dllm.constraints.base import Constraint


@dataclass(frozen=True)
class Infill:
    """A text with gaps: strings are kept, an integer n is a gap of n tokens to fill.

    `Infill("def f(x):", 12, "return x")` asks for the twelve tokens in between. `Template` has
    holes whose length is searched or whose text is held to a constraint.
    """

    parts: tuple[str | int, ...]

    def __init__(self, *parts: str | int) -> None:
        for part in parts:
            if isinstance(part, bool) or not isinstance(part, str | Integral):
                raise TypeError(
                    f"Infill part {reprlib.repr(part)} must be a text or a number of tokens"
                )
            if isinstance(part, Integral) and part < 1:
                raise ValueError(f"Infill gap {part!r} must be a number of tokens of at least 1")
        if all(isinstance(part, str) for part in parts):
            raise ValueError(f"Infill{parts!r} has no gap: give the number of tokens to fill")
        object.__setattr__(self, "parts", parts)


@dataclass(frozen=True)
class Gap:
    """The slots of one hole, counted from the prompt's end."""

    start: int
    stop: int
    constraint: Constraint | None
    last: bool  # nothing follows it: an end token may end its text


@dataclass(frozen=True)
class Laid:
    """How a template lies in a row."""

    answer: int  # number of the answer, of which the rows differ in the lengths of their holes
    lead: int  # tokens at the prompt's end that are the template's
    gaps: tuple[Gap, ...]
    probed: bool = False  # which length is decoded is found out before

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each hole."""
        return tuple(gap.stop - gap.start for gap in self.gaps)

    @property
    def first_end(self) -> int:
        """The first slot that may hold an end token."""
        last = self.gaps[-1]
        return last.start if last.last else last.stop
