"""Regular expressions as values, over characters of Unicode: what every language is built from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dllm.constraints.automaton import ByteAutomaton

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


@dataclass(frozen=True)
class Known(Expression):
    """What an automaton accepts."""

    automaton: ByteAutomaton


@dataclass(frozen=True)
class Both(Expression):
    """The texts that are in two sets."""

    one: Expression
    other: Expression


@dataclass(frozen=True)
class Without(Expression):
    """The texts of a set that are not in another."""

    one: Expression
    other: Expression


@dataclass(frozen=True)
class Network(Expression):
    """The texts along any path of a graph from node `start` to node `end`."""

    edges: tuple[tuple[int, Expression, int], ...]  # from node, text, to node
    start: int
    end: int


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


def check_text(text: str) -> None:
    """Raises ValueError where UTF-8 has no bytes for a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} has half of a surrogate pair, which is no text") from None


def literal(text: str) -> Expression:
    """Returns one text; raises ValueError where UTF-8 has no bytes for it."""
    check_text(text)
    return Sequence(tuple(Characters(((ord(one), ord(one)),)) for one in text))


def optional(part: Expression) -> Expression:
    """Returns a part or the empty text."""
    return Repeated(part, 0, 1)


def one_of(*parts: Expression) -> Expression:
    """Returns a text of any part."""
    return parts[0] if len(parts) == 1 else Either(parts)


def joined(*parts: Expression) -> Expression:
    """Returns one text of each part, one after the other."""
    return parts[0] if len(parts) == 1 else Sequence(parts)


def listed(part: Expression, separator: Expression) -> Expression:
    """Returns one or more texts with a separator between them, with a single copy of the part."""
    return Network(((0, part, 1), (1, separator, 0)), 0, 1)


def spelled(expression: Expression, spell: Callable[[Ranges], Expression]) -> Expression:
    """Returns the texts of an expression with each character written in another way.

    Different characters must be spelled differently, and none as the beginning of another.
    """
    if isinstance(expression, Characters):
        return spell(expression.ranges)
    if isinstance(expression, Sequence):
        return Sequence(tuple(spelled(part, spell) for part in expression.parts))
    if isinstance(expression, Either):
        return Either(tuple(spelled(part, spell) for part in expression.parts))
    if isinstance(expression, Both | Without):
        sides = (spelled(expression.one, spell), spelled(expression.other, spell))
        return type(expression)(*sides)
    assert isinstance(expression, Repeated)  # of a parsed pattern, which has nothing else
    return Repeated(spelled(expression.part, spell), expression.least, expression.most)
