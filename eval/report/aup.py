"""AUP: the area under accuracy over tokens per forward, where lost accuracy weighs exponentially.

Source: arXiv 2601.07568; hao-ai-lab/d3LLM.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dllm.eval.ablation.lines import Group, Line, groups

STEEPNESS = 3.0  # of the weight: an accuracy 10 % below the best counts exp(-0.3)
TOLERANCE = 5.0  # points of accuracy that a setting may lose against the slowest one


@dataclass(frozen=True)
class Measured:
    """A setting of a method: its speed and its accuracy."""

    tokens_per_forward: float
    accuracy: float  # in %

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tokens_per_forward) and self.tokens_per_forward > 0):
            raise ValueError(f"tokens_per_forward={self.tokens_per_forward} must be above 0")
        if not 0 <= self.accuracy <= 100:
            raise ValueError(f"accuracy={self.accuracy} must be a percentage, 0 to 100")


def aup(points: Iterable[Measured], best: float) -> float:
    """Returns the area in percent times tokens per forward; higher is better.

    `best` is the highest accuracy in % that any compared method has on the task, this one
    included. What is more than 5 points below the slowest setting does not count. Raises
    ValueError where the area is not defined: no points, two of one speed, a `best` that is not
    the best, or a fastest setting that is itself more than 5 points below the slowest.
    """
    ordered = sorted(points, key=lambda point: point.tokens_per_forward)
    _check(ordered, best)
    least = ordered[0].accuracy - TOLERANCE
    kept = [point for point in ordered if point.accuracy >= least]
    area = kept[0].tokens_per_forward * kept[0].accuracy
    for slower, faster in pairwise(kept):
        width = faster.tokens_per_forward - slower.tokens_per_forward
        area += width * (_weighed(slower, best) + _weighed(faster, best)) / 2
    return area


@dataclass(frozen=True)
class Area:
    """The AUP of a curve in a group of lines."""

    group: Group
    method: str
    runs: int
    left_out: int  # of the runs: more than 5 points below the slowest run of the group
    value: float | None  # None: no run of the group was ever right


def areas(lines: Sequence[Line[Any]]) -> list[Area]:
    """Returns the AUP of each curve, by group.

    Each curve begins at the slowest line of its group: what comes before a curve's first line would
    otherwise count unweighted, and one fast line would beat a whole curve. Lines that lost too much
    accuracy are left out, so that a curve's other lines still count. The best accuracy is that of
    the group's best line.
    """
    measured = []
    for group, members in groups(lines).items():
        best = max(line.accuracy for line in members)
        slowest = min(members, key=lambda line: (line.speed("tokens_per_forward"), -line.number))
        for curve in dict.fromkeys(line.curve for line in members):
            on_curve = [line for line in members if line.curve == curve]
            close = [line for line in on_curve if line.accuracy >= slowest.accuracy - TOLERANCE]
            value = _area([slowest, *close], best) if best else None
            measured.append(Area(group, curve, len(on_curve), len(on_curve) - len(close), value))
    return measured


def _area(members: Sequence[Line[Any]], best: float) -> float:
    fastest: dict[float, float] = {}  # of lines of one speed the better one counts
    for line in members:
        speed = line.speed("tokens_per_forward")
        fastest[speed] = max(fastest.get(speed, 0.0), line.accuracy)
    return aup([Measured(speed, accuracy) for speed, accuracy in fastest.items()], best)


def _weighed(point: Measured, best: float) -> float:
    return point.accuracy * math.exp(-STEEPNESS * (1 - point.accuracy / best))


def _check(ordered: Sequence[Measured], best: float) -> None:
    if not ordered:
        raise ValueError("AUP needs at least one point")
    highest = max(point.accuracy for point in ordered)
    if not highest <= best <= 100 or best <= 0:
        raise ValueError(
            f"best={best} must be the best accuracy in % of all compared methods, above 0, at "
            f"least the {highest:g} of this one and at most 100"
        )
    speeds = [point.tokens_per_forward for point in ordered]
    twice = next((one for one, other in pairwise(speeds) if one == other), None)
    if twice is not None:
        raise ValueError(f"two points have {twice:g} tokens per forward: keep the better one")
    first, fastest = ordered[0], ordered[-1]
    if fastest.accuracy < first.accuracy - TOLERANCE:
        raise ValueError(
            f"the fastest setting has {fastest.accuracy:g} %, more than {TOLERANCE:g} points below "
            f"the {first.accuracy:g} % of the slowest: leave it out, or measure one between"
        )
