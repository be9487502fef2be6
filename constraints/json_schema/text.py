"""How JSON writes strings and constants, and the formats that strings can have."""

from __future__ import annotations

import json
from typing import Any

from dllm.constraints.regex import Reading, expression_of
from dllm.constraints.regular.expression import (
    ANY,
    Either,
    Expression,
    Ranges,
    Sequence,
    characters,
    common,
    joined,
    literal,
)

_SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
_AS_THEY_ARE = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))

_DAY = (
    r"[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_LABEL = "[A-Za-z0-9]+"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# A part of what each format allows; of dates, no 29 February.
FORMATS = {
    "date": _DAY,
    "date-time": f"{_DAY}T{_TIME}",
    "time": _TIME,
    "email": rf"[\w+-]+(?:\.[\w+-]+)*@{_LABEL}(?:[.-]{_LABEL})*\.[A-Za-z]{{2,6}}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}


def spell(ranges: Ranges) -> Expression:
    """Returns a character of ranges as it stands inside a string: there is one way for each."""
    found: list[Expression] = [common(ranges, _AS_THEY_ARE)]
    for low, high in common(ranges, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))).ranges:
        found += [literal(_SHORT.get(one, f"\\u{one:04x}")) for one in range(low, high + 1)]
    return Either(tuple(found))


CHARACTER = spell(ANY.ranges)


def quoted(inside: Expression) -> Expression:
    """Returns a string whose characters are already spelled."""
    return joined(literal('"'), inside, literal('"'))


def string(text: str) -> Expression:
    """Returns one string; raises ValueError where it has half of a surrogate pair."""
    return literal(json.dumps(text, ensure_ascii=False))


def format_of(name: str) -> Expression:
    """Returns the characters of a format of `FORMATS`, not yet spelled."""
    return expression_of(FORMATS[name], Reading(strict=True))


def constant(value: Any, gap: Expression) -> Expression:
    """Returns the text of a value, with `gap` after commas and colons."""
    if isinstance(value, list):
        return _enclosed("[]", [constant(one, gap) for one in value], gap)
    if isinstance(value, dict):
        pairs = [joined(key(name, gap), constant(one, gap)) for name, one in value.items()]
        return _enclosed("{}", pairs, gap)
    return literal(json.dumps(value, ensure_ascii=False))


def key(name: str, gap: Expression) -> Expression:
    """Returns the text of a key up to its value."""
    return joined(string(name), literal(":"), gap)


def comma(gap: Expression) -> Expression:
    """Returns what stands between two values."""
    return joined(literal(","), gap)


def _enclosed(brackets: str, parts: list[Expression], gap: Expression) -> Expression:
    inside: list[Expression] = []
    for part in parts:
        inside += [comma(gap), part] if inside else [part]
    return Sequence((literal(brackets[0]), *inside, literal(brackets[1])))


DIGIT = characters([(0x30, 0x39)])
