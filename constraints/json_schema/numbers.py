"""Numbers between limits, as texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from dllm.constraints.json_schema.text import DIGIT
from dllm.constraints.regular.expression import (
    EMPTY,
    NOTHING,
    Both,
    Either,
    Expression,
    Network,
    Repeated,
    characters,
    joined,
    literal,
    one_of,
    optional,
)

MOST_DIGITS = 15  # which a double keeps exactly, so that other readers see the same number
_POINT = literal(".")


@dataclass(frozen=True)
class Limits:
    """The range of numbers; None is no limit."""

    least: Decimal | None = None
    most: Decimal | None = None
    above: bool = False  # whether the least one is left out
    below: bool = False  # whether the most one is left out

    def apart(self, other: Limits) -> bool:
        """Whether no number is in both ranges."""
        return _ends_before(self, other) or _ends_before(other, self)


def _ends_before(one: Limits, other: Limits) -> bool:
    if one.most is None or other.least is None:
        return False
    open_end = one.below or other.above
    return one.most < other.least or (open_end and one.most == other.least)


def integers(limits: Limits, multiple: int = 1) -> Expression:
    """Returns the integers of a range that are multiples of a number."""
    largest = 10**MOST_DIGITS - 1
    low = -largest if limits.least is None else _whole(limits.least, up=True, strict=limits.above)
    high = largest if limits.most is None else _whole(limits.most, up=False, strict=limits.below)
    # Without a limit on one side, that on the other may be beyond all that is written there.
    low = min(low, high) if limits.least is None else low
    high = max(low, high) if limits.most is None else high
    found = one_of(natural(max(low, 0), high), joined(literal("-"), natural(max(1, -high), -low)))
    return found if multiple == 1 else Both(found, _multiples(multiple))


def _whole(limit: Decimal, *, up: bool, strict: bool) -> int:
    """Returns the first integer on the inner side of a limit."""
    floor = int(limit // 1) if limit >= 0 or limit == limit // 1 else int(limit // 1) - 1
    exact = floor == limit
    if up:
        return floor + 1 if strict or not exact else floor
    return floor - 1 if strict and exact else floor


def natural(low: int, high: int) -> Expression:
    """Returns the integers from `low` to `high`, none of them negative."""
    if low > high:
        return NOTHING
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        parts.append(_between(str(first), str(last)))
    return Either(tuple(parts))


def _between(low: str, high: str) -> Expression:
    """Returns the digits from `low` to `high`, both of the same length."""
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return Repeated(DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return joined(literal(low[0]), _between(low[1:], high[1:]))
    rest = len(low) - 1
    return Either(
        (
            joined(literal(low[0]), _between(low[1:], "9" * rest)),
            joined(_digits(int(low[0]) + 1, int(high[0]) - 1), Repeated(DIGIT, rest, rest)),
            joined(literal(high[0]), _between("0" * rest, high[1:])),
        )
    )


def _digits(low: int, high: int) -> Expression:
    return characters([(0x30 + low, 0x30 + high)]) if low <= high else NOTHING


def _multiples(number: int) -> Expression:
    """Returns the digits of multiples: nodes are what is left of those before."""
    edges = tuple(
        (rest, literal(str(digit)), (10 * rest + digit) % number)
        for rest in range(number)
        for digit in range(10)
    )
    return joined(optional(literal("-")), Network(edges, 0, 0))


def numbers(limits: Limits) -> Expression:
    """Returns the numbers of a range, with an exponent only where there is no limit."""
    if limits.least is None and limits.most is None:
        sign = optional(characters([(0x2B, 0x2B), (0x2D, 0x2D)]))
        power = joined(characters([(0x45, 0x45), (0x65, 0x65)]), sign, Repeated(DIGIT, 1, 2))
        return joined(optional(literal("-")), _shape(MOST_DIGITS, MOST_DIGITS), optional(power))
    zero = Decimal(0)
    least, most = limits.least, limits.most
    sides: list[Expression] = []
    if most is None or most >= 0:
        from_zero = least is None or least < 0
        low = (zero, False) if least is None or from_zero else (least, limits.above)
        sides.append(_positive(low, None if most is None else (most, limits.below)))
    if least is None or least < 0:
        up_to_zero = most is None or most >= 0
        low = (zero, True) if most is None or up_to_zero else (-most, limits.below)
        high = None if least is None else (-least, limits.above)
        sides.append(joined(literal("-"), _positive(low, high)))
    return Either(tuple(sides))


Limit = tuple[Decimal, bool]  # a number that is not negative, and whether it is left out


def _positive(low: Limit, high: Limit | None) -> Expression:
    """Returns the numbers without a sign between two limits.

    They have so many digits that none is rounded to an open limit when it is read.
    """
    whole = max(len(_parts(limit[0])[0]) for limit in (low, high) if limit is not None)
    shape = _shape(max(MOST_DIGITS, whole), max(MOST_DIGITS - whole, 1))
    found = Both(shape, _at_least(*low))
    return found if high is None else Both(found, _at_most(*high))


def _shape(whole: int, fraction: int) -> Expression:
    """Returns numbers without a sign with up to so many digits before and after the point."""
    head = one_of(literal("0"), joined(_digits(1, 9), Repeated(DIGIT, 0, whole - 1)))
    return joined(head, optional(joined(_POINT, Repeated(DIGIT, 1, fraction))))


def _parts(number: Decimal) -> tuple[str, str]:
    """Returns the digits before and after the point, the latter without zeros at their end."""
    whole, _, fraction = f"{number:f}".partition(".")
    return whole, fraction.rstrip("0")


_FRACTION = optional(joined(_POINT, Repeated(DIGIT, 1)))


def _at_least(number: Decimal, strict: bool) -> Expression:
    whole, fraction = _parts(number)
    # Of more digits, or larger ones.
    larger = joined(_beyond(whole), _FRACTION)
    more: list[Expression] = [
        joined(literal(fraction[:place]), _digits(int(digit) + 1, 9), Repeated(DIGIT))
        for place, digit in enumerate(fraction)
    ]
    nonzero = joined(Repeated(literal("0")), _digits(1, 9), Repeated(DIGIT))
    more.append(joined(literal(fraction), nonzero if strict else Repeated(DIGIT)))
    found = joined(literal(whole), _POINT, Either(tuple(more)))
    same = [joined(literal(whole))] if not fraction and not strict else []
    return Either((larger, found, *same))


def _at_most(number: Decimal, strict: bool) -> Expression:
    whole, fraction = _parts(number)
    smaller = joined(natural(0, int(whole) - 1), _FRACTION)
    less = [*_less(fraction)]
    if not strict:
        less.append(joined(_POINT, literal(fraction), Repeated(literal("0"), 0 if fraction else 1)))
        less += [] if fraction else [EMPTY]
    return Either((smaller, joined(literal(whole), Either(tuple(less)))))


def _less(fraction: str) -> Iterator[Expression]:
    """Yields the points and digits of fractions that are less than one."""
    if fraction:
        yield EMPTY
    for place, digit in enumerate(fraction):
        if place:
            yield joined(_POINT, literal(fraction[:place]))
        head = literal(fraction[:place])
        yield joined(_POINT, head, _digits(0, int(digit) - 1), Repeated(DIGIT))


def _beyond(whole: str) -> Expression:
    """Returns the integers above one, as many digits as they have."""
    above = int(whole) + 1
    same_length = natural(above, 10 ** len(whole) - 1)
    longer = joined(_digits(1, 9), Repeated(DIGIT, len(whole)))
    return one_of(same_length, longer)
