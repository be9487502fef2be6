"""The digests of recorded settings: tokens, order and passes are what they were."""

from __future__ import annotations

from typing import Any

import pytest

from tests.digest import digest, recorded, settings
from tests.support.marks import marks_of

CASES = settings()
FAST = 10  # one case in so many
PARTS = ("scheduler", "cache", "verifier")


def cases() -> list[Any]:
    """Returns the names of all settings as parameters."""
    names = list(recorded())
    found = [(model, *values_of(given)) for model, given in (CASES[name] for name in names)]
    marks = marks_of(found, range(3, len(names), FAST))
    return [pytest.param(name, marks=own) for name, own in zip(names, marks, strict=True)]


def values_of(given: dict[str, Any]) -> list[str]:
    """Returns a scheduler, a cache, a verifier and what else is set, as text."""
    rest = {key: value for key, value in given.items() if key not in PARTS}
    return [repr(given.get(key)) for key in PARTS] + [repr(rest)]


@pytest.mark.few(12)
@pytest.mark.parametrize("name", cases())
def test_what_is_decoded_is_what_was_recorded(name: str) -> None:
    assert digest(*CASES[name]) == recorded()[name]
