"""The race: many settings on a few problems, fewer on more, until one can be named.

All that is decided follows from results and from forwards that were counted, never from a clock:
a race that is run again over the results of one that was killed decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dllm.eval.run.results import RefusedError, Result
from dllm.eval.tasks.task import Problem
from dllm.tuning.arm import SURE, Arm, Cost, front
from dllm.tuning.floor import Floor
from dllm.tuning.space import Choice, Space

STAGES = (32, 64, 128, 256, 512, 1024)  # problems of an arm
_FRESH = 10  # neighbours of the leaders that enter a round
_LEADERS = 4  # of each kind: the cheapest above the floor, and the front
_PAIRED = 2  # measurements of the unseen problems that are kept back: stepwise and the recipe

Measure = Callable[[Choice, Sequence[Problem]], Iterable[Result]]


@dataclass(frozen=True)
class Rules:
    """What a race goes by."""

    cost: Cost
    floor: Floor
    unseen: int  # problems that are kept back
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
        self._extend(self.space.stepwise, STAGES[0])
        return self.stepwise

    def run(self, budget: float) -> None:
        """Races until nothing new is left, or the budget but for what unseen problems take."""
        allowed = budget - _PAIRED * self.rules.unseen * self.stepwise.work
        fresh, number = self.space.first(), 0
        while self._enter(fresh, allowed):
            self._leave()
            size = STAGES[min(number + 1, len(STAGES) - 1)]
            if not self._promote(size, allowed):
                return
            self._leave()
            number += 1
            leaders = [arm.choice for arm in self.leaders]
            known = [*self.arms, *self.left, *self.refused]
            fresh = self.space.near(leaders, known, f"{self.rules.seed}-{number}")[:_FRESH]
            if not fresh and size >= len(self.problems):
                return

    @property
    def stepwise(self) -> Arm:
        """The arm of one token a forward."""
        return self.arms[self.space.stepwise]

    @property
    def racing(self) -> list[Arm]:
        """The arms that have not left."""
        return [arm for choice, arm in self.arms.items() if choice not in self.left]

    @property
    def leaders(self) -> list[Arm]:
        """The cheapest arms that may be above the floor, then some of their front."""
        hopeful = [arm for arm in self.racing if self._above(arm, 1.0)]
        cheapest = sorted(hopeful, key=lambda arm: (arm.cost, arm.choice.label))[:_LEADERS]
        return list({arm.choice: arm for arm in [*cheapest, *front(hopeful)[:_LEADERS]]}.values())

    def chosen(self) -> Arm:
        """Returns the cheapest arm that is above the floor by a standard error, on most problems.

        One that is merely lucky on few problems would fall below it on others. If there is none,
        it is one token a forward itself.
        """
        most = max(arm.count for arm in self.racing)
        tried = [arm for arm in self.racing if 2 * arm.count >= most]
        sure = [arm for arm in tried if self._above(arm, -1.0)]
        return min(sure, key=lambda arm: (arm.cost, arm.choice.label), default=self.stepwise)

    def _above(self, arm: Arm, errors: float) -> bool:
        excess = arm.excess(self.stepwise, self.rules.floor)
        return excess.mean + errors * excess.error >= 0

    def _enter(self, choices: Sequence[Choice], allowed: float) -> bool:
        """Measures new arms on the first problems; False when the budget does not reach."""
        for number, choice in enumerate(choices):
            if not self._affords(STAGES[0] * self.stepwise.work, allowed):
                self.waiting += choices[number:]
                return False
            self._extend(choice, STAGES[0])
        return True

    def _promote(self, size: int, allowed: float) -> bool:
        """Measures the leaders on more problems, one token a forward first."""
        stepwise, *leaders = [self.stepwise, *self.leaders]
        for arm in [stepwise, *leaders]:
            more = min(size, len(self.problems)) - arm.count
            if more > 0 and not self._affords(more * arm.work, allowed):
                return False
            if more > 0:
                self._extend(arm.choice, size)
        return True

    def _affords(self, work: float, allowed: float) -> bool:
        return self.spent + work <= allowed

    def _extend(self, choice: Choice, size: int) -> None:
        """Measures an arm on the first problems, of which it knows some."""
        known = self.arms[choice].results if choice in self.arms else {}
        asked = [one for one in self.problems[:size] if one.id not in known]
        try:
            found = {result.id: result for result in self.measure(choice, asked)}
        except RefusedError as error:
            self.refused[choice] = str(error)
            return
        self.spent += sum(result.row_forwards for result in found.values())
        ordered = {one.id: ({**known, **found})[one.id] for one in self.problems[:size]}
        self.arms[choice] = Arm(choice, ordered, self.rules.cost)

    def _leave(self) -> None:
        """Lets arms go that are below the floor or behind another beyond doubt."""
        for arm in self.racing:
            if arm.choice == self.space.stepwise:
                continue
            if not self._above(arm, SURE):
                self.left[arm.choice] = f"below {self.rules.floor} on {arm.count} problems"
                continue
            others = (arm.loses_to(one) for one in self.racing if one is not arm)
            why = next(filter(None, others), "")
            if why:
                self.left[arm.choice] = why
