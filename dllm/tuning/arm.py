"""An arm of a race: a choice with the results that it has so far, beside those of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from dllm.eval.compare.paired import Counts
from dllm.eval.run.results import Result
from dllm.options import shown
from dllm.registry import nearest
from dllm.tuning.floor import Floor
from dllm.tuning.space import Choice

Cost = Literal["forwards", "seconds", "flops"]
COSTS: tuple[str, ...] = get_args(Cost)
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
    """A choice and its results by problem."""

    choice: Choice
    results: Mapping[str, Result]
    cost_name: Cost

    @property
    def count(self) -> int:
        """Problems that it has answered."""
        return len(self.results)

    @cached_property
    def accuracy(self) -> float:
        """The part of its problems that are right."""
        return sum(bool(one.correct) for one in self.results.values()) / self.count

    @cached_property
    def cost(self) -> float:
        """The mean cost of a problem."""
        return sum(map(self.cost_of, self.results.values())) / self.count

    @cached_property
    def work(self) -> float:
        """The mean forwards of a row, its variants counted, that a problem takes of the budget."""
        return sum(one.row_forwards for one in self.results.values()) / self.count

    def cost_of(self, result: Result) -> float:
        """Returns the cost of an answer."""
        value = getattr(result, self.cost_name)
        if value is None:
            raise ValueError(
                f"--cost {self.cost_name}: it is not known of this model; take another of "
                f"{', '.join(COSTS)}"
            )
        return float(value)

    def excess(self, stepwise: Arm, floor: Floor) -> Estimate:
        """Returns by how much its accuracy is above the floor, problem by problem."""
        both = [(self.results[i], stepwise.results[i]) for i in self._common(stepwise)]
        lifts = [floor.excess(bool(a.correct), bool(b.correct)) for a, b in both]
        # Two problems more, as in Agresti and Min (2005): else a few that agree are certain.
        return Estimate.of([*lifts, 1.0, -1.0])

    def loses_to(self, other: Arm) -> str:
        """Returns why it may leave because of another arm, empty if it may not.

        The other has to be cheaper beyond doubt, and either right where this one is wrong more
        often than chance would have it, or at most a hundredth less often right.
        """
        common = self._common(other)
        if len(common) < 2:
            return ""
        pairs = [(self.results[i], other.results[i]) for i in common]
        saved = Estimate.of([self.cost_of(a) - other.cost_of(b) for a, b in pairs])
        if saved.mean - SURE * saved.error <= 0:
            return ""
        counts = self._counts(other)
        named = f"{other.choice.label} is cheaper by {saved.mean:.2f} {self.cost_name}"
        if counts.only_first < counts.only_second and counts.exact_p < _RARE:
            return f"{named} and more often right (McNemar p={counts.exact_p:.1g})"
        if counts.interval[1] <= _LITTLE:
            return f"{named} and at most {counts.interval[1]:.1%} less often right"
        return ""

    def _counts(self, other: Arm) -> Counts:
        kinds = [0, 0, 0, 0]
        for i in self._common(other):
            mine, theirs = bool(self.results[i].correct), bool(other.results[i].correct)
            kinds[2 * (not mine) + (not theirs)] += 1
        return Counts(*kinds)

    def _common(self, other: Arm) -> list[str]:
        return [i for i in self.results if i in other.results]


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


def front(arms: Sequence[Arm]) -> list[Arm]:
    """Returns the arms that none beats in both accuracy and cost, the cheapest first."""
    best, kept = -1.0, []
    for arm in sorted(arms, key=lambda arm: (arm.cost, -arm.accuracy, arm.choice.label)):
        if arm.accuracy > best:
            best = arm.accuracy
            kept.append(arm)
    return kept
