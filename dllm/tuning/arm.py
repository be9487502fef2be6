"""An arm of a race: a choice with the results that it has so far, beside those of others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from dllm.eval.compare.paired import Counts
from dllm.eval.run.results import Result
from dllm.options import shown
from dllm.registry import nearest
from dllm.tuning.floor import Floor
from dllm.tuning.space import Choice

# Forwards are those of rows: drafts and variants of a row are rows of a pass, and count. A pass is
# one however many rows it has.
Cost = Literal["forwards", "passes", "seconds", "flops"]
COSTS: tuple[str, ...] = get_args(Cost)
_FIELDS = {"forwards": "row_forwards", "passes": "forwards"}  # of a result
# Standard deviations beyond which an arm leaves: it is looked at several times, and a good one that
# left is not looked at again.
SURE = 2.6
_RARE = 0.01  # a p-value that no more than chance would give so seldom
_LITTLE = 0.01  # accuracy that nobody would pay for


def checked_cost(cost: str) -> Cost:
    """Returns the name of a cost; raises ValueError that lists the known ones."""
    if cost not in COSTS:
        raise ValueError(f"--cost {shown(cost)} is unknown: {nearest(cost, COSTS)}")
    return cost  # type: ignore[return-value]


@dataclass(frozen=True)
class Arm:
    """A choice and its results on the first problems of a list that all arms share."""

    choice: Choice
    results: tuple[Result, ...]
    cost_name: Cost

    @property
    def count(self) -> int:
        """Problems that it has answered."""
        return len(self.results)

    @property
    def accuracy(self) -> float:
        """The part of its problems that are right."""
        return self._right.bit_count() / self.count

    @cached_property
    def cost(self) -> float:
        """The mean cost of a problem."""
        return math.fsum(self._costs) / self.count

    @cached_property
    def work(self) -> float:
        """The mean forwards of a row, its variants counted, that a problem takes of the budget."""
        return sum(one.row_forwards for one in self.results) / self.count

    def cost_of(self, result: Result) -> float:
        """Returns the cost of an answer; raises ValueError if it is not known of the model."""
        value = getattr(result, _FIELDS.get(self.cost_name, self.cost_name))
        if value is None:
            raise ValueError(
                f"--cost {self.cost_name}: it is not known of this model; take another of "
                f"{', '.join(COSTS)}"
            )
        return float(value)

    def excess(self, stepwise: Arm, floor: Floor) -> Estimate:
        """Returns by how much its accuracy is above the floor, problem by problem."""
        counts = self._counts(stepwise)
        # Two problems more, as in Agresti and Min (2005): else a few that agree are certain.
        lifts = [(floor.excess(right=True, stepwise=True), counts.both), (1.0, 1), (-1.0, 1)]
        lifts += [(floor.excess(right=True, stepwise=False), counts.only_first)]
        lifts += [(floor.excess(right=False, stepwise=True), counts.only_second)]
        lifts += [(floor.excess(right=False, stepwise=False), counts.neither)]
        return Estimate.of_counts(lifts)

    def loses_to(self, other: Arm) -> str:
        """Returns why it may leave because of another arm, empty if it may not.

        The other has to be cheaper beyond doubt, and either right where this one is wrong more
        often than chance would have it, or at most a hundredth less often right.
        """
        if min(self.count, other.count) < 2 or self.cost <= other.cost:
            return ""
        counts = self._counts(other)
        better = counts.only_first < counts.only_second and counts.exact_p < _RARE
        if not better and counts.interval[1] > _LITTLE:
            return ""
        pairs = zip(self._costs, other._costs, strict=False)  # those that both have answered
        saved = Estimate.of([mine - theirs for mine, theirs in pairs])
        if saved.mean - SURE * saved.error <= 0:
            return ""
        named = f"{other.choice.label} is cheaper by {saved.mean:.2f} {self.cost_name}"
        if better:
            return f"{named} and more often right (McNemar p={counts.exact_p:.1g})"
        return f"{named} and at most {counts.interval[1]:.1%} less often right"

    @cached_property
    def _right(self) -> int:
        """A bit for each problem, the first one lowest."""
        return sum(1 << place for place, one in enumerate(self.results) if one.correct)

    @cached_property
    def _costs(self) -> list[float]:
        return list(map(self.cost_of, self.results))

    def _counts(self, other: Arm) -> Counts:
        common = min(self.count, other.count)
        every = (1 << common) - 1
        mine, theirs = self._right & every, other._right & every
        both, either = (mine & theirs).bit_count(), (mine | theirs).bit_count()
        alone = mine.bit_count() - both, theirs.bit_count() - both
        return Counts(both, *alone, common - either)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    error: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Returns the mean of at least two values."""
        count = len(values)
        mean = math.fsum(values) / count
        spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        return Estimate(mean, math.sqrt(spread / count))

    @staticmethod
    def of_counts(values: Sequence[tuple[float, int]]) -> Estimate:
        """Returns the mean of values that each occur so many times, at least two in all."""
        count = sum(times for _, times in values)
        mean = math.fsum(value * times for value, times in values) / count
        spread = math.fsum((value - mean) ** 2 * times for value, times in values) / (count - 1)
        return Estimate(mean, math.sqrt(spread / count))


def by_cost(arms: Iterable[Arm]) -> list[Arm]:
    """Returns arms in the order of their cost, of equal ones the more accurate first."""
    return sorted(arms, key=lambda arm: (arm.cost, -arm.accuracy, arm.choice.label))


def front(arms: Iterable[Arm]) -> list[Arm]:
    """Returns the arms that none beats in both accuracy and cost, the cheapest first."""
    best, kept = -1.0, list[Arm]()
    for arm in by_cost(arms):
        if arm.accuracy > best:
            best = arm.accuracy
            kept.append(arm)
    return kept
