"""Races over made results: who leaves, who leads, what is spent, and that it can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from dllm.eval.run.results import RefusedError, Result
from dllm.eval.tasks.task import Problem
from dllm.tuning.arm import Arm, Estimate, checked_cost, front
from dllm.tuning.floor import Floor
from dllm.tuning.race import STAGES, Race, Rules
from dllm.tuning.space import Choice
from tests.support.tuning import SPACE, World, answer, problems

PROBLEMS = problems("raced", 256)
RULES = Rules("forwards", Floor.parse("accuracy >= 0.95 * stepwise"), seed=0)
FLOOR = RULES.floor


def raced(allowed: float, measure: object = World(0), rules: Rules = RULES) -> Race:
    race = Race(SPACE, rules, PROBLEMS, measure)  # type: ignore[arg-type]
    race.begin()
    race.run(allowed)
    return race


def arm(rights: Sequence[bool], forwards: Sequence[int], choice: Choice = SPACE.stepwise) -> Arm:
    pairs = enumerate(zip(rights, forwards, strict=True))
    return Arm(choice, tuple(answer(f"p{n}", *pair) for n, pair in pairs), "forwards")


def test_what_is_cheap_and_above_the_floor_leads() -> None:
    race = raced(1e9)
    best = race.cheapest(1.0)[0]
    assert World(0).truth(best.choice).accuracy >= 0.95 * World(0).truth(SPACE.stepwise).accuracy
    assert best.cost < 0.25 * race.stepwise.cost
    assert best.count == len(PROBLEMS)


def test_the_same_results_give_the_same_race() -> None:
    one, other = raced(60_000), raced(60_000)
    assert list(one.arms.values()) == list(other.arms.values())
    assert (one.left, one.spent) == (other.left, other.spent)


def test_another_seed_tries_others() -> None:
    other = raced(60_000, rules=replace(RULES, seed=1))
    assert set(other.arms) != set(raced(60_000).arms)


@pytest.mark.parametrize("allowed", [12_000, 20_000, 40_000])
def test_no_more_is_spent_than_is_allowed(allowed: int) -> None:
    race = raced(allowed)
    assert 0.5 * allowed < race.spent <= allowed


def test_a_small_budget_leaves_settings_that_are_named() -> None:
    race = raced(1_500)
    assert race.waiting
    assert not set(race.waiting) & set(race.arms)


def test_no_scheduler_takes_more_than_half_of_the_places_while_others_wait() -> None:
    race = Race(SPACE, RULES, PROBLEMS, World(0))
    stepwise = arm([True] * 64, [34] * 64)
    cheap = [replace(SPACE.stepwise, scheduler="klass", block_length=b) for b in (4, 8, 16, 32)]
    dear = [replace(SPACE.stepwise, scheduler="threshold", block_length=b) for b in (4, 8, 16)]
    made = [arm([True] * 64, [n + 3] * 64, one) for n, one in enumerate([*cheap, *dear])]
    race.arms |= {one.choice: one for one in [stepwise, *made]}
    assert [one.choice for one in race.leaders(4)] == [*cheap[:2], *dear[:2]]
    race.arms = {one.choice: one for one in [stepwise, *made[:5]]}
    assert [one.choice for one in race.leaders(4)] == [*cheap[:3], dear[0]]  # none is left free


def test_losers_leave_with_a_reason() -> None:
    race = raced(1e9, rules=replace(RULES, floor=Floor.parse("accuracy >= 0.98 * stepwise")))
    assert any("below accuracy >= 0.98" in why for why in race.left.values())
    assert any("is cheaper by" in why for why in race.left.values())
    assert race.stepwise.choice not in race.left
    assert race.cheapest(1.0)[0].choice not in race.left


def test_all_arms_have_the_first_problems() -> None:
    for one in raced(60_000).arms.values():
        assert [result.id for result in one.results] == [p.id for p in PROBLEMS[: one.count]]


def test_a_setting_that_is_refused_does_not_end_the_race() -> None:
    def refusing(choice: Choice, asked: Sequence[Problem]) -> Iterator[Result]:
        if choice.scheduler == "credit":
            raise RefusedError("no credit here")
        yield from World(0)(choice, asked)

    race = raced(1e9, refusing)
    assert {choice.scheduler for choice in race.refused} == {"credit"}
    assert race.cheapest(1.0)


def test_without_any_above_the_floor_none_leads() -> None:
    def careless(choice: Choice, asked: Sequence[Problem]) -> Iterator[Result]:
        for one in World(0)(choice, asked):
            yield replace(one, correct=bool(one.correct) and choice == SPACE.stepwise)

    assert [one.choice for one in raced(1e9, careless).cheapest(0.0)] == [SPACE.stepwise]


def test_lucky_arms_of_few_problems_are_not_the_cheapest_above() -> None:
    race = raced(60_000)
    most = max(one.count for one in race.racing)
    assert all(2 * one.count >= most for one in race.cheapest(0.0))
    assert min(STAGES) * 2 < most


def test_a_cheaper_arm_that_is_right_as_often_beats_another() -> None:
    rights = [True] * 400
    slow, fast = arm(rights, [9, 11] * 200), arm(rights, [5, 6] * 200)
    assert "at most" in slow.loses_to(fast)
    assert fast.loses_to(slow) == ""


def test_a_few_problems_let_nobody_leave_who_is_as_right() -> None:
    rights = [True] * 32
    assert arm(rights, [9] * 32).loses_to(arm(rights, [5] * 32)) == ""


def test_mcnemar_lets_a_cheaper_and_better_arm_win_early() -> None:
    wrong = [False] * 12 + [True] * 20
    assert "McNemar" in arm(wrong, [9] * 32).loses_to(arm([True] * 32, [5] * 32))


def test_the_excess_is_the_mean_of_what_each_answer_lifts() -> None:
    mine = arm([True, True, False, False, True], [1] * 5)
    stepwise = arm([True, False, True, False, True, True], [1] * 6)
    both = zip(mine.results, stepwise.results, strict=False)
    lifts = [FLOOR.excess(bool(a.correct), bool(b.correct)) for a, b in both]
    wanted, found = Estimate.of([*lifts, 1.0, -1.0]), mine.excess(stepwise, FLOOR)
    assert (found.mean, found.error) == pytest.approx((wanted.mean, wanted.error))


def test_an_estimate_by_hand() -> None:
    assert Estimate.of([1.0, 2.0, 3.0]) == Estimate(2.0, (1 / 3) ** 0.5)
    assert Estimate.of_counts([(1.0, 1), (2.0, 1), (3.0, 1)]) == Estimate(2.0, (1 / 3) ** 0.5)


def test_a_front_by_hand() -> None:
    cheap = arm([False, True], [2, 2])
    middle = arm([False, True], [3, 3])
    good = arm([True, True], [4, 4])
    assert front([good, middle, cheap]) == [cheap, good]


def test_an_unknown_cost_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'minutes'.*forwards"):
        checked_cost("minutes")


def test_drafts_are_forwards_and_no_passes() -> None:
    drafting = tuple(replace(answer(f"p{n}", True, 3), row_forwards=9) for n in range(2))
    assert Arm(SPACE.stepwise, drafting, "forwards").cost == 9
    assert Arm(SPACE.stepwise, drafting, "passes").cost == 3


def test_a_cost_that_is_not_known_is_refused() -> None:
    unknown = Arm(SPACE.stepwise, (answer("p0", True, 3),), "flops")
    with pytest.raises(ValueError, match="--cost flops: it is not known of this model"):
        _ = unknown.cost
