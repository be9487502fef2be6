"""Races over made results: who leaves, who is named, what is spent, and that it can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from dllm.eval.run.results import RefusedError, Result
from dllm.eval.tasks.task import Problem
from dllm.tuning.arm import Arm, Estimate, checked_cost, front
from dllm.tuning.floor import Floor
from dllm.tuning.race import STAGES, Race, Rules
from dllm.tuning.space import Choice, Space

PROBLEMS = [Problem(f"p{n}", f"prompt {n}", "", "1") for n in range(256)]
SPACE = Space.of("forwards", 64, 16, 32)
RULES = Rules("forwards", Floor.parse("accuracy >= 0.95 * stepwise"), unseen=100, seed=0)


def result(name: str, right: bool, forwards: int) -> Result:
    """Returns an answer of which only these figures matter."""
    figures = {"prompt_tokens": 1, "valid_tokens": 1, "raw_tokens": 1}
    texts = {"run": "r", "prompt": "p", "text": "t", "answer": "1", "finish_reason": "eos"}
    shares = {"tokens_fed": 1.0, "seconds": 1.0, "settings": {}}
    counted = {"forwards": forwards, "row_forwards": forwards}
    return Result(id=name, correct=right, **figures, **texts, **shares, **counted)  # type: ignore[arg-type]


def world(choice: Choice, problems: Sequence[Problem]) -> Iterator[Result]:
    """Answers so that care costs: thresholds nearer to 1 are right more often and take longer."""
    care = 1.0 if choice.value is None else choice.value
    share = 0.99 if choice == SPACE.stepwise else min(0.99, 1.2 * care - 0.2)
    cost = 30 if choice == SPACE.stepwise else round(3 + 10 * care)
    penalty = 0 if choice.scheduler in ("threshold", "fixed_quota") else 4
    for problem in problems:
        luck = random.Random(f"{problem.id}").random()
        yield result(problem.id, luck < share, cost + penalty)


def raced(budget: float, measure: object = world) -> Race:
    race = Race(SPACE, RULES, PROBLEMS, measure)  # type: ignore[arg-type]
    race.begin()
    race.run(budget)
    return race


def arm(rights: Sequence[bool], forwards: Sequence[int], choice: Choice = SPACE.stepwise) -> Arm:
    pairs = enumerate(zip(rights, forwards, strict=True))
    return Arm(choice, {f"p{n}": result(f"p{n}", *pair) for n, pair in pairs}, "forwards")


def test_the_cheapest_above_the_floor_is_named() -> None:
    race = raced(1e9)
    chosen = race.chosen()
    # 0.95 * 0.99 = 0.94: care of 0.95 and more is enough, and costs 12 or 13.
    assert chosen.choice.scheduler == "threshold"
    assert chosen.choice.value is not None
    assert chosen.cost == 12
    assert 2 * chosen.count >= len(PROBLEMS)


def test_the_same_results_give_the_same_decision() -> None:
    one, other = raced(60_000), raced(60_000)
    assert (one.chosen(), one.left, one.spent) == (other.chosen(), other.left, other.spent)


@pytest.mark.parametrize("budget", [12_000, 20_000, 40_000])
def test_what_unseen_problems_take_is_kept_back(budget: int) -> None:
    race = raced(budget)
    assert race.spent <= budget - 2 * RULES.unseen * race.stepwise.work
    assert race.spent > STAGES[0] * 30


def test_a_small_budget_leaves_settings_that_are_named() -> None:
    race = raced(12_000)
    assert race.waiting
    assert not set(race.waiting) & set(race.arms)


def test_losers_leave_with_a_reason() -> None:
    race = raced(1e9)
    assert any("below accuracy >= 0.95" in why for why in race.left.values())
    assert race.stepwise.choice not in race.left
    assert race.chosen().choice not in race.left


def test_a_setting_that_is_refused_does_not_end_the_race() -> None:
    def refusing(choice: Choice, problems: Sequence[Problem]) -> Iterator[Result]:
        if choice.scheduler == "credit":
            raise RefusedError("no credit here")
        yield from world(choice, problems)

    race = raced(1e9, refusing)
    assert {choice.scheduler for choice in race.refused} == {"credit"}
    assert race.chosen().cost == 12


def test_without_any_above_the_floor_it_is_one_token_a_forward() -> None:
    def careless(choice: Choice, problems: Sequence[Problem]) -> Iterator[Result]:
        for one in world(choice, problems):
            yield replace(one, correct=bool(one.correct) and choice == SPACE.stepwise)

    assert raced(1e9, careless).chosen().choice == SPACE.stepwise


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


def test_an_estimate_by_hand() -> None:
    assert Estimate.of([1.0, 2.0, 3.0]) == Estimate(2.0, (1 / 3) ** 0.5)


def test_a_front_by_hand() -> None:
    cheap = arm([False, True], [2, 2])
    middle = arm([False, True], [3, 3])
    good = arm([True, True], [4, 4])
    assert front([good, middle, cheap]) == [cheap, good]


def test_an_unknown_cost_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'minutes'.*forwards"):
        checked_cost("minutes")


def test_a_cost_that_is_not_known_is_refused() -> None:
    unknown = Arm(SPACE.stepwise, {"p0": result("p0", True, 3)}, "flops")
    with pytest.raises(ValueError, match="--cost flops: it is not known of this model"):
        _ = unknown.cost


@pytest.mark.parametrize("cost", ["forwards", "flops", "seconds"])
def test_only_what_changes_the_cost_is_varied(cost: str) -> None:
    space = Space.of(cost, 64, 16, 32)
    first = space.first()
    assert len(first) == len(set(first))
    assert (len({one.cache for one in first}) > 1) is (cost != "forwards")
    assert (len({one.batch_size for one in first}) > 1) is (cost == "seconds")


def test_neighbours_differ_in_one_part_and_are_new() -> None:
    first = SPACE.first()
    near = SPACE.near(first[:3], first, "a")
    assert near == SPACE.near(first[:3], first, "a")
    assert not set(near) & set(first)
    for one in near:
        parts = [
            sum(a != b for a, b in zip(vars(one).values(), vars(leader).values(), strict=True))
            for leader in first[:3]
        ]
        assert min(parts) == 1
