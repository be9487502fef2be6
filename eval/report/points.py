"""What a comparison's plot shows: points, and the part of it that deserves a closer look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dllm.eval.report.box import Box
from dllm.eval.report.standings import Standing

_MARGIN = 0.25  # of the baseline's extent, on every side of it
_LEAST = (0.5, 5.0)  # that margin at least: tokens per forward, points of accuracy
_CLOSER_BELOW = 0.5  # of the whole plot's area; a larger part is visible enough


@dataclass(frozen=True)
class Point:
    """A finished contender as it is drawn."""

    x: float  # tokens per forward
    y: float  # accuracy in %
    low: float  # of the interval, in %
    high: float
    curve: str
    text: str  # tells it from the others on its curve
    is_baseline: bool
    on_front: bool


def points_of(standings: Sequence[Standing]) -> list[Point]:
    """Returns a point for each contender that answered every problem."""
    return [
        Point(
            x=summary.tokens_per_forward,
            y=100 * summary.accuracy,
            low=100 * summary.accuracy_low,
            high=100 * summary.accuracy_high,
            curve=standing.contender.curve,
            text=standing.contender.setting or standing.contender.curve,
            is_baseline=standing.contender.is_baseline,
            on_front=standing.on_front,
        )
        for standing in standings
        if standing.complete and (summary := standing.summary) is not None
    ]


def closer_look(points: Sequence[Point]) -> Box | None:
    """Returns the surroundings of the baseline if they are a small part of the whole plot."""
    baseline = [point for point in points if point.is_baseline]
    if not baseline:
        return None
    core, whole = _extent(baseline), _extent(points)
    across = max(_MARGIN * (core.right - core.left), _LEAST[0])
    up = max(_MARGIN * (core.top - core.bottom), _LEAST[1])
    box = Box(core.left - across, core.bottom - up, core.right + across, core.top + up)
    return box if box.area < _CLOSER_BELOW * whole.area else None


def _extent(points: Sequence[Point]) -> Box:
    across, up = [point.x for point in points], [point.y for point in points]
    return Box(min(across), min(up), max(across), max(up))
