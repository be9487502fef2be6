"""What the fields of a configuration may be, checked in one way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Numbers:
    """The numbers that a field may be; NaN, infinity, booleans and texts are none of them."""

    least: float
    most: float
    whole: bool = True
    optional: bool = False

    def __contains__(self, value: object) -> bool:
        if value is None:
            return self.optional
        kind = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        return self.least <= value <= self.most  # type: ignore[operator] # false for NaN

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        or_none = ", or None" if self.optional else ""
        return f"a {kind} from {self.least} to {self.most}{or_none}"


NO_LIMIT = 2**31 - 1  # tokens of a model that has no limit
MOST_LAYERS = 1000  # more are a mistake that takes minutes to build
TINIEST, LARGEST = math.ulp(0.0), 1e12

# What each field may be: numbers, one of some values, or (None) what is checked by itself.
Allowed = Mapping[str, Numbers | tuple[Any, ...] | None]


def check_fields(part: Any, allowed: Allowed) -> None:
    """Raises ValueError unless every field of a dataclass is what it may be."""
    for field in fields(part):
        value, choices = getattr(part, field.name), allowed[field.name]
        if isinstance(choices, Numbers):
            holds, what = value in choices, str(choices)
        elif choices is None:
            continue
        else:  # by type as well: 1 is not True
            holds = any(type(value) is type(one) and value == one for one in choices)
            what = f"one of {', '.join(map(repr, choices))}"
        if not holds:
            raise ValueError(f"{field.name}={value!r} must be {what}")
