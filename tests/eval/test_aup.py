"""The area under accuracy over parallelism: the leaderboard's values, and what is refused."""

from __future__ import annotations

import math

import pytest

from dllm.eval.report.aup import Measured, aup

# hao-ai-lab/d3LLM, AUP_leaderboard: its points, and what its code gives for them.
BOARD = [
    (74.98, [(1.0, 72.55)], 72.55),
    (74.98, [(1.0, 74.79), (2.77, 74.68)], 205.8),
    (74.98, [(1.0, 74.98), (2.88, 74.39)], 213.8),
    (74.98, [(1.0, 74.0), (5.14, 72.63)], 358.1),
    (74.98, [(1.0, 74.02), (9.11, 73.09)], 637.7),
    (67.73, [(1.0, 38.16), (2.56, 37.8)], 54.0),
    (67.73, [(1.0, 41.02), (2.69, 40.64)], 62.0),
    (67.73, [(1.0, 39.68), (4.93, 39.02)], 83.7),
    (67.73, [(1.0, 39.8), (5.95, 39.63)], 96.6),
    (83.94, [(1.0, 83.68), (1.44, 79.0)], 116.5),
    (83.94, [(1.0, 83.47), (4.94, 81.36)], 391.3),
]


def points(pairs: list[tuple[float, float]]) -> list[Measured]:
    return [Measured(speed, accuracy) for speed, accuracy in pairs]


@pytest.mark.parametrize(("best", "pairs", "value"), BOARD)
def test_the_leaderboard_is_reproduced(
    best: float, pairs: list[tuple[float, float]], value: float
) -> None:
    assert aup(points(pairs), best) == pytest.approx(value, abs=0.06)


def test_a_worked_example() -> None:
    # 1 * 80, then a width of 2 with weights of exp(-0.6) and 1.
    area = aup(points([(1, 80), (3, 100)]), 100)
    assert area == pytest.approx(80 + (80 * math.exp(-0.6) + 100))


def test_the_order_of_points_says_nothing_and_a_slump_between_is_left_out() -> None:
    outer = [(1.0, 80.0), (4.0, 78.0)]
    assert aup(points([(2.0, 74.9), *outer[::-1]]), 80) == aup(points(outer), 80)
    assert aup(points([(2.0, 75.0), *outer]), 80) < aup(points([(2.0, 80.0), *outer]), 80)
    assert aup(points([(2.0, 75.0), *outer]), 80) != aup(points(outer), 80)


@pytest.mark.parametrize(
    ("pairs", "best", "said"),
    [
        ([], 80, "at least one point"),
        ([(1, 80), (2, 74)], 80, "fastest setting has 74 %"),
        ([(1, 80), (1, 79)], 80, "two points have 1 tokens"),
        ([(1, 80)], 79, "best=79 must be the best accuracy"),
        ([(1, 0)], 0, "best=0 must be"),
        ([(1, 50)], 101, "best=101 must be"),
    ],
)
def test_what_has_no_area_is_refused(
    pairs: list[tuple[float, float]], best: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        aup(points(pairs), best)


def test_five_points_below_still_count() -> None:
    assert aup(points([(1, 80), (2, 75)]), 80) > 80


@pytest.mark.parametrize(("speed", "accuracy"), [(0, 80), (-1, 80), (math.nan, 80), (1, 101)])
def test_points_that_cannot_be_are_refused(speed: float, accuracy: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Measured(speed, accuracy)
