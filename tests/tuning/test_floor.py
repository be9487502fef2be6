"""Floors of accuracy, as they are written."""

from __future__ import annotations

import pytest

from dllm.tuning.floor import Floor


@pytest.mark.parametrize(
    ("text", "share", "relative"),
    [
        ("accuracy >= 0.98 * stepwise", 0.98, True),
        ("accuracy>=98%*stepwise", 0.98, True),
        (" accuracy >= .9 ", 0.9, False),
    ],
)
def test_a_floor_is_read(text: str, share: float, relative: bool) -> None:
    assert Floor.parse(text) == Floor(share, relative)
    assert Floor.parse(str(Floor.parse(text))) == Floor(share, relative)


@pytest.mark.parametrize(
    "text", ["", "0.98", "accuracy > 0.9", "speed >= 2", "accuracy >= 0.9 * best", "accuracy >= x"]
)
def test_what_cannot_be_read_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read.*0\.98 \* stepwise"):
        Floor.parse(text)


@pytest.mark.parametrize("text", ["accuracy >= 0", "accuracy >= 98", "accuracy >= 101% * stepwise"])
def test_a_share_is_one(text: str) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        Floor.parse(text)


def test_an_answer_lifts_a_relative_floor_by_what_stepwise_lacks() -> None:
    floor = Floor.parse("accuracy >= 0.5 * stepwise")
    assert floor.excess(right=True, stepwise=True) == 0.5
    assert floor.excess(right=False, stepwise=True) == -0.5
    assert floor.excess(right=True, stepwise=False) == 1.0
    assert Floor.parse("accuracy >= 0.5").excess(right=True, stepwise=False) == 0.5
