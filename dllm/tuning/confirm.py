"""The last word on a race: which of its settings are above the floor on problems it never saw.

The winner of a race was picked from many for its results, so these flatter it. Here a few settings
are tried on fresh problems, from the safest to the cheapest, with a share of the error rate each; a
setting that passes hands its share on to the next one. So a setting below the floor is named no
more often than that rate, however many are tried (the fallback procedure: Wiens, Pharmaceutical
Statistics 2 (2003); Wiens and Dmitrienko (2005) prove it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from dllm.eval.tasks.task import Problem
from dllm.tuning.arm import Arm, Estimate, by_cost
from dllm.tuning.race import Race
from dllm.tuning.space import Choice

ERROR_RATE = 0.05  # of searches that name a setting whose accuracy is below the floor
# Tried in turn: the cheapest setting above the floor by so many standard errors of the race.
_RUNGS = (3.0, 2.0, 1.5, 1.0, 0.5)
_WORTH = 0.98  # of the cost of the one before: a trial for less is not worth its share
_SPARE = 1.15  # of the cost of the safest of these: so much a still safer one may take


@dataclass(frozen=True)
class Trial:
    """A setting on fresh problems."""

    arm: Arm
    excess: Estimate  # of its accuracy over the floor
    level: float  # the error rate that it is tried at

    @property
    def bound(self) -> float:
        """The excess that the accuracy has at least, but for the error rate."""
        return self.excess.mean - NormalDist().inv_cdf(1 - self.level) * self.excess.error

    @property
    def passed(self) -> bool:
        """Whether the setting was shown to be above the floor."""
        return self.bound >= 0


@dataclass(frozen=True)
class Confirmed:
    """The setting that a search names, and the trials that it was named by."""

    chosen: Choice
    trials: Sequence[Trial]  # in order
    problems: int
    spent: float  # forwards of a row

    @property
    def trial(self) -> Trial | None:
        """The trial of the setting that is named; None for one token a forward, if none passed."""
        return next((one for one in self.trials if one.arm.choice == self.chosen), None)


def finalists(race: Race) -> list[Arm]:
    """Returns the settings to be tried, from the safest to the cheapest."""
    found: list[Arm] = []
    for errors in _RUNGS:
        for arm in race.cheapest(errors)[:1]:
            new = arm.choice != race.space.stepwise
            if new and (not found or arm.cost < _WORTH * found[-1].cost):
                found.append(arm)
    if not found:
        return []
    dearest = _SPARE * found[0].cost
    near = [arm for arm in race.cheapest(_RUNGS[0]) if arm.cost <= dearest]
    surest = max(near, key=lambda arm: (arm.accuracy, -arm.cost), default=found[0])
    tried = found if surest in found else [surest, *found]
    return [*_another(race, {arm.choice.scheduler for arm in tried}), *tried]


def _another(race: Race, names: set[str]) -> list[Arm]:
    """Returns the cheapest safe setting of another scheduler, where all finalists are of one.

    A scheduler that is cheapest by far and near the floor leaves its own settings alone at the
    end, and fresh problems may confirm none of them.
    """
    if len(names) > 1:
        return []
    past = names | {race.space.stepwise.scheduler}
    safe = (arm for errors in _RUNGS for arm in race.cheapest(errors))
    return [arm for arm in safe if arm.choice.scheduler not in past][:1]


def confirm(race: Race, problems: Sequence[Problem], allowed: float) -> Confirmed:
    """Tries the finalists on as many of the problems as so many forwards of a row reach for."""
    tried = finalists(race)
    if not tried:
        return Confirmed(race.space.stepwise, [], 0, 0.0)
    each = race.stepwise.work + sum(arm.work for arm in tried)
    count = max(min(len(problems), int(allowed / each)), 2)

    def measured(choice: Choice) -> Arm:
        found = {result.id: result for result in race.measure(choice, problems[:count])}
        return Arm(choice, tuple(found[one.id] for one in problems[:count]), race.rules.cost)

    stepwise, share, handed = measured(race.space.stepwise), ERROR_RATE / len(tried), 0.0
    trials: list[Trial] = []
    for arm in tried:
        fresh, level = measured(arm.choice), share + handed
        trials.append(Trial(fresh, fresh.excess(stepwise, race.rules.floor), level))
        handed = level if trials[-1].passed else 0.0
    passed = [one.arm for one in trials if one.passed]
    chosen = [*by_cost(passed), stepwise][0]
    spent = count * sum(arm.work for arm in (stepwise, *(trial.arm for trial in trials)))
    return Confirmed(chosen.choice, trials, count, spent)
