"""The setting that is named: how often it is below the floor, over races with known accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from dllm.tuning.arm import Arm
from dllm.tuning.confirm import ERROR_RATE, Confirmed, Trial, confirm, finalists
from dllm.tuning.floor import Floor
from dllm.tuning.race import Race, Rules
from dllm.tuning.space import Choice
from tests.support.marks import SLOW
from tests.support.tuning import SPACE, World, answer, problems

RACED, FRESH = problems("raced", 512), problems("fresh", 1024)
RULES = Rules("forwards", Floor.parse("accuracy >= 0.98 * stepwise"), seed=0)


@dataclass(frozen=True)
class Naming:
    """What one search came to, beside the truth."""

    wrong: bool  # the accuracy of what was named is below the floor
    stepwise: bool  # it is one token a forward
    dearer: float  # its cost, of that of the cheapest setting that was tried and is above the floor


def named(seed: int, budget: float = 240_000) -> Naming:
    world = World(seed)
    race = Race(SPACE, replace(RULES, seed=seed), RACED, world)
    race.begin()
    race.run(budget - 2 * race.stepwise.work * len(FRESH))
    chosen = confirm(race, FRESH, budget - race.spent).chosen
    floor = 0.98 * world.truth(SPACE.stepwise).accuracy
    truths = map(world.truth, race.arms)
    best = min(one.cost for one in truths if one.accuracy >= floor)
    truth = world.truth(chosen)
    return Naming(truth.accuracy < floor, chosen == SPACE.stepwise, truth.cost / best)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("searches", [8, pytest.param(500, marks=SLOW)])
def test_what_is_named_is_above_the_floor_and_nearly_the_cheapest(searches: int) -> None:
    found = [named(seed) for seed in range(searches)]
    # Of 500, the share of wrong ones would be off by 1 % (a standard error) if it were 5 %.
    assert sum(one.wrong for one in found) <= ERROR_RATE * searches
    assert sum(one.stepwise for one in found) <= 0.05 * searches
    dearer = sorted(one.dearer for one in found)
    assert dearer[len(found) // 2] < 1.05
    assert dearer[9 * len(found) // 10] < 1.12


def arm(choice: Choice, wrong: int, cost: int, count: int = 1000) -> Arm:
    rights = [n >= wrong for n in range(count)]
    return Arm(choice, tuple(answer(f"p{n}", r, cost) for n, r in enumerate(rights)), "forwards")


def race_of(arms: Sequence[Arm], fresh_wrong: dict[Choice, int]) -> Race:
    """Returns a race that has been run, whose arms have so many fresh problems wrong."""

    def measure(choice: Choice, asked: Sequence[object]) -> list[object]:
        wrong, cost = fresh_wrong[choice], race.arms[choice].cost
        return [answer(f"fresh{n}", n >= wrong, int(cost)) for n in range(len(asked))]

    race = Race(SPACE, RULES, RACED, measure)  # type: ignore[arg-type]
    race.arms |= {one.choice: one for one in arms}
    return race


SAFE, MIDDLE, CHEAP = (SPACE.first()[n] for n in (1, 2, 3))


def tried(fresh: dict[Choice, int], count: int = 1000) -> Confirmed:
    arms = [arm(SPACE.stepwise, 0, 34), arm(SAFE, 0, 9), arm(MIDDLE, 11, 7), arm(CHEAP, 13, 5)]
    race = race_of(arms, {SPACE.stepwise: 0} | fresh)
    assert [one.choice for one in finalists(race)] == [SAFE, MIDDLE, CHEAP]
    return confirm(race, problems("fresh", count), 1e9)


def test_a_race_that_ends_with_one_scheduler_keeps_another_to_fall_back_on() -> None:
    narrow = [
        replace(SPACE.stepwise, scheduler="klass").having({"threshold": t}) for t in (0.6, 0.9)
    ]
    other = replace(SPACE.stepwise, scheduler="threshold")
    dearer = replace(other, block_length=4)
    arms = [arm(narrow[0], 14, 3), arm(narrow[1], 8, 4), arm(other, 2, 6), arm(dearer, 0, 9)]
    fresh = {SPACE.stepwise: 0, narrow[0]: 25, narrow[1]: 25, other: 2, dearer: 0}
    race = race_of([arm(SPACE.stepwise, 0, 34), *arms], fresh)
    assert [one.choice for one in finalists(race)] == [other, narrow[1], narrow[0]]
    done = confirm(race, problems("fresh", 1000), 1e9)
    assert done.chosen == other
    assert [one.passed for one in done.trials] == [True, False, False]


def test_the_cheapest_that_passes_is_named() -> None:
    done = tried({SAFE: 0, MIDDLE: 2, CHEAP: 4})
    assert done.chosen == CHEAP
    assert done.trial is not None
    assert done.trial.bound >= 0
    assert done.spent == 1000 * (34 + 9 + 7 + 5)


def test_what_passes_hands_its_share_on_and_what_fails_keeps_it() -> None:
    share = ERROR_RATE / 3
    done = tried({SAFE: 0, MIDDLE: 50, CHEAP: 0})
    assert [one.level for one in done.trials] == pytest.approx([share, 2 * share, share])
    assert [one.passed for one in done.trials] == [True, False, True]
    assert done.chosen == CHEAP


def test_a_setting_that_was_lucky_in_the_race_is_not_named() -> None:
    assert tried({SAFE: 0, MIDDLE: 2, CHEAP: 19}).chosen == MIDDLE


def test_if_none_passes_it_is_one_token_a_forward() -> None:
    done = tried({SAFE: 30, MIDDLE: 30, CHEAP: 30})
    assert (done.chosen, done.trial) == (SPACE.stepwise, None)


def test_a_few_fresh_problems_show_nothing() -> None:
    assert tried({SAFE: 0, MIDDLE: 0, CHEAP: 0}, count=32).chosen == SPACE.stepwise


def test_as_many_fresh_problems_are_taken_as_the_budget_pays_for() -> None:
    arms = [arm(SPACE.stepwise, 0, 34), arm(SAFE, 0, 9)]
    race = race_of(arms, {SPACE.stepwise: 0, SAFE: 0})
    done = confirm(race, FRESH, 43 * 500 + 20)
    assert (done.problems, done.spent) == (500, 43 * 500)


def test_a_race_without_finalists_spends_nothing_more() -> None:
    race = race_of([arm(SPACE.stepwise, 0, 34), arm(CHEAP, 500, 5)], {})
    assert confirm(race, FRESH, 1e9) == Confirmed(SPACE.stepwise, [], 0, 0.0)


def test_the_bound_is_the_mean_less_what_the_level_asks_for() -> None:
    fresh = arm(CHEAP, 10, 5)
    excess = fresh.excess(arm(SPACE.stepwise, 0, 34), RULES.floor)
    assert Trial(fresh, excess, 0.05).bound == pytest.approx(excess.mean - 1.644854 * excess.error)
