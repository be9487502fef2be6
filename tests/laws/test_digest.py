"""The digests of recorded settings: tokens, order and passes are what they were."""

from __future__ import annotations

import pytest

from tests.digest import digest, recorded, settings

CASES = settings()
FAST = 10  # one case in so many


@pytest.mark.few(12)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if place % FAST == 3 else pytest.mark.slow)
        for place, name in enumerate(recorded())
    ],
)
def test_what_is_decoded_is_what_was_recorded(name: str) -> None:
    assert digest(*CASES[name]) == recorded()[name]
