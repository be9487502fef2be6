"""The race: many settings on a few problems, fewer on more, until one can be named.

All that is decided follows from results and from forwards that were counted, never from a clock:
a race that is run again over the results of one that was killed decides the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from dllm.eval.run.results import RefusedError, Result
from dllm.eval.tasks.task import Problem
from dllm.tuning.arm import SURE, Arm, Cost, Estimate, by_cost
from dllm.tuning.floor import Floor
from dllm.tuning.space import Choice, Space

# Problems of an arm, and how many of each kind of leader go on to so many.
STAGES = {8: 0, 32: 24, 64: 16, 128: 12, 256: 8, 512: 6, 1024: 6, 2048: 6}
_FIRST = min(STAGES)
BEGUN = 32  # problems of one token a forward, by which the rest is reckoned
_FRESH = 16  # neighbours of the leaders that enter a round
_PARENTS = 4  # leaders of each kind whose neighbours do
_PATIENCE = 2  # rounds on all problems in which no cheaper setting was found
_NAMED = 2.0  # standard errors above the floor, from where on a confirmation is likely to succeed
_LESS = 0.99  # of a cost, which is worth a round

Measure = Callable[[Choice, Sequence[Problem]], Iterable[Result]]


@dataclass(frozen=True)
class Rules:
    """What a race goes by."""

    cost: Cost
    floor: Floor
    seed: int


@dataclass
class Race:
    """Arms that are measured, leave and lead."""

    space: Space
    rules: Rules
    problems: Sequence[Problem]
    measure: Measure
    arms: dict[Choice, Arm] = field(default_factory=dict)
    left: dict[Choice, str] = field(default_factory=dict)  # why each that left did
    refused: dict[Choice, str] = field(default_factory=dict)
    waiting: list[Choice] = field(default_factory=list)  # not measured, for the budget
    spent: float = 0.0  # forwards of rows

    def begin(self) -> Arm:
        """Measures one token a forward on the first problems, which says what a forward costs."""
        self._extend(self.space.stepwise, BEGUN)
        return self.stepwise

    def run(self, allowed: float) -> None:
        """Races until nothing better is found, or so many forwards of a row are spent."""
        fresh, costs = self.space.first(), list[float]()
        stages = sorted({min(stage, len(self.problems)) for stage in STAGES})
        for number in count(1):
            known = stages[1 : number + 1]
            if not self._enter(fresh, allowed) or not self._promote(known, allowed):
                return
            fresh = self._neighbours(number)
            if number < len(stages) - 1:
                continue
            costs.append(min((arm.cost for arm in self.cheapest(_NAMED)), default=inf))
            before = costs[-1 - _PATIENCE] if len(costs) > _PATIENCE else inf
            settled = _LESS * before < costs[-1] < inf
            if settled or not fresh:
                return

    @property
    def stepwise(self) -> Arm:
        """The arm of one token a forward."""
        return self.arms[self.space.stepwise]

    @property
    def racing(self) -> list[Arm]:
        """The arms that have not left."""
        return [arm for choice, arm in self.arms.items() if choice not in self.left]

    def cheapest(self, errors: float) -> list[Arm]:
        """Returns the arms above the floor by so many standard errors, the cheapest first.

        Only those that have at least half as many problems as any: another may merely be lucky.
        """
        least = max(arm.count for arm in self.racing) / 2
        tried = [arm for arm in self.racing if arm.count >= least]
        return by_cost(arm for arm in tried if self.above(arm, -errors))

    def above(self, arm: Arm, errors: float) -> bool:
        """Whether an arm is above the floor with so many standard errors added."""
        excess = self._excess(arm)
        return excess.mean + errors * excess.error >= 0

    def leaders(self, places: int) -> list[Arm]:
        """Returns the cheapest arms that may be above the floor, that are, and that are amply.

        Ample is half of what one token a forward has; without such arms, a race whose cheap ones
        all turn out to be lucky would have none to name. For the same reason no scheduler takes
        more than half of the places while others wait.
        """
        racing = [arm for arm in self.racing if arm.choice != self.space.stepwise]
        ample = max(0.0, self._excess(self.stepwise).mean / 2)
        kinds = (
            _mixed([arm for arm in racing if self.above(arm, 1.0)], places),
            _mixed([arm for arm in racing if self._excess(arm).mean >= 0], places),
            _mixed([arm for arm in racing if self._excess(arm).mean >= ample], places),
        )
        return list({arm.choice: arm for kind in kinds for arm in kind}.values())

    def _excess(self, arm: Arm) -> Estimate:
        return arm.excess(self.stepwise, self.rules.floor)

    def _neighbours(self, number: int) -> list[Choice]:
        parents = [arm.choice for arm in self.leaders(_PARENTS)]
        known = [*self.arms, *self.refused]
        return self.space.near(parents, known, f"{self.rules.seed}-{number}")[:_FRESH]

    def _enter(self, choices: Sequence[Choice], allowed: float) -> bool:
        """Measures new arms on the first problems; False when the budget does not reach."""
        for number, choice in enumerate(choices):
            if not self._affords(_FIRST * self.stepwise.work, allowed):
                self.waiting += choices[number:]
                return False
            self._extend(choice, _FIRST)
        self._leave()
        return True

    def _promote(self, stages: Sequence[int], allowed: float) -> bool:
        """Takes leaders on from stage to stage, one token a forward first."""
        for stage in stages:
            places = next(STAGES[one] for one in STAGES if one >= stage)
            for arm in [self.stepwise, *self.leaders(places)]:
                more = stage - arm.count
                if more > 0 and not self._affords(more * arm.work, allowed):
                    return False
                if more > 0:
                    self._extend(arm.choice, stage)
            self._leave()
        return True

    def _affords(self, work: float, allowed: float) -> bool:
        return self.spent + work <= allowed

    def _extend(self, choice: Choice, size: int) -> None:
        """Measures an arm on the first problems, of which it knows some."""
        known = self.arms[choice].results if choice in self.arms else ()
        asked = self.problems[len(known) : size]
        try:
            found = {result.id: result for result in self.measure(choice, asked)}
        except RefusedError as error:
            self.refused[choice] = str(error)
            return
        self.spent += sum(result.row_forwards for result in found.values())
        answers = *known, *(found[one.id] for one in asked)
        self.arms[choice] = Arm(choice, answers, self.rules.cost)

    def _leave(self) -> None:
        """Lets arms go that are below the floor or behind another beyond doubt."""
        for arm in self.racing:
            if arm.choice == self.space.stepwise:
                continue
            if not self.above(arm, SURE):
                self.left[arm.choice] = f"below {self.rules.floor} on {arm.count} problems"
                continue
            others = (arm.loses_to(one) for one in self.racing if one is not arm)
            why = next(filter(None, others), "")
            if why:
                self.left[arm.choice] = why


def _mixed(arms: Sequence[Arm], places: int) -> list[Arm]:
    """Returns the cheapest of some arms, at most half of them of one scheduler if others are."""
    taken = Counter[str]()
    first, later = list[Arm](), list[Arm]()
    for arm in by_cost(arms):
        name = arm.choice.scheduler
        taken[name] += 1
        (first if 2 * taken[name] <= places else later).append(arm)
    return by_cost((first + later)[:places])
