"""Regular expressions as values, over characters of Unicode: what every language is built from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Range = tuple[int, int]  # first and last code point
Ranges = tuple[Range, ...]  # in order, disjoint, without surrogates, which UTF-8 has no bytes for

LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True)
class Expression:
    """A set of texts."""


@dataclass(frozen=True)
class Characters(Expression):
    """One character of some ranges."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence(Expression):
    """One text of each part, one after the other."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Either(Expression):
    """A text of any of the parts."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Repeated(Expression):
    """`least` to `most` texts of a part, without an end where `most` is None."""

    part: Expression
    least: int = 0
    most: int | None = None


EMPTY = Sequence(())  # the empty text alone
NOTHING = Either(())  # no text


def characters(ranges: Iterable[Range]) -> Characters:
    """Returns any character of ranges, which may overlap; surrogates in them are left out."""
    below, above = SURROGATES
    cut = [
        part
        for low, high in ranges
        for part in ((low, min(high, below - 1)), (max(low, above + 1), high))
        if part[0] <= part[1]
    ]
    merged: list[Range] = []
    for low, high in sorted(cut):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return Characters(tuple(merged))


def besides(ranges: Iterable[Range]) -> Characters:
    """Returns any character outside of ranges."""
    found, next_one = [], 0
    for low, high in sorted(ranges):
        found.append((next_one, low - 1))
        next_one = max(next_one, high + 1)
    return characters(part for part in (*found, (next_one, LAST)) if part[0] <= part[1])


def common(one: Ranges, other: Ranges) -> Characters:
    """Returns any character that is in both."""
    both = ((max(a, c), min(b, d)) for a, b in one for c, d in other)
    return characters(part for part in both if part[0] <= part[1])


ANY = besides(())


def literal(text: str) -> Expression:
    """Returns one text; raises ValueError where UTF-8 has no bytes for it."""
    text.encode()  # a surrogate alone
    return Sequence(tuple(Characters(((ord(one), ord(one)),)) for one in text))
