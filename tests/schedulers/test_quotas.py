"""SDAR's schedules: shares of a full block, from left to right, and as the least of a threshold."""

from __future__ import annotations

import pytest
import torch

from dllm.schedulers import Decision, Scheduler
from dllm.schedulers.fixed_quota import FixedQuota, share_of_block
from dllm.schedulers.quota_threshold import QuotaThreshold
from dllm.state.candidates import Candidates
from tests.support.views import MASK, view_of

SURE = [0.9, 0.3, 0.8, 0.2, 0.7, 0.6, 0.5, 0.4]  # of each column of a block


def decided(scheduler: Scheduler, masked: list[int], block_step: int = 0) -> list[int]:
    """Returns the columns that a step commits of a block in which some are masked."""
    chance = torch.tensor([SURE])[..., None]
    rest = ((1 - chance) / MASK).expand(1, len(SURE), MASK)
    candidates = Candidates(torch.cat([chance, rest], -1).log(), torch.zeros(1, 8).long())
    open_ = torch.zeros(1, 8, dtype=torch.bool)
    open_[0, masked] = True
    decision: Decision = scheduler.decide(candidates, view_of(open_, block_step))
    return list(decision.commit[0].nonzero()[:, 0].tolist())


def test_larger_shares_of_a_full_block_come_first() -> None:
    for steps, shares in ((5, [2, 2, 2, 1, 1]), (3, [3, 3, 2]), (8, [1] * 8), (1, [8])):
        every = torch.arange(steps)
        assert share_of_block(torch.full((steps,), steps), every, 8).tolist() == shares
    # What is left after the last step, or of more steps than columns, goes one by one at least.
    assert share_of_block(torch.tensor([12, 5]), torch.tensor([9, 7]), 8).tolist() == [1, 1]


def test_a_block_that_the_prompt_fills_in_part_ends_early_with_the_schedule_of_a_full_one() -> None:
    rest = [5, 6, 7]
    assert decided(FixedQuota(steps=4), rest) == [5]
    assert decided(FixedQuota(steps=4, schedule="block"), rest) == [5, 6]
    assert decided(FixedQuota(steps=4, schedule="block"), [7], block_step=1) == [7]
    full = list(range(8))
    for steps in (1, 2, 4, 8):  # a full block is shared out alike
        other = FixedQuota(steps=steps, schedule="block")
        assert decided(FixedQuota(steps=steps), full) == decided(other, full)


@pytest.mark.parametrize("schedule", ["masks", "block"])
def test_sequential_goes_from_left_to_right(schedule: str) -> None:
    options = {"order": "sequential", "schedule": schedule}
    assert decided(FixedQuota(**options), [3, 1, 6]) == [1]  # type: ignore[arg-type]
    steps = FixedQuota(steps=2, **options)  # type: ignore[arg-type]
    assert decided(steps, list(range(8))) == [0, 1, 2, 3]


def test_a_step_commits_its_share_at_least() -> None:
    full = list(range(8))
    least = {"quota": "least", "steps": 4}
    assert decided(QuotaThreshold(0.95, **least), full) == [0, 2]  # type: ignore[arg-type]
    assert decided(QuotaThreshold(0.65, **least), full) == [0, 2, 4]  # type: ignore[arg-type]
    assert decided(QuotaThreshold(0.85, **least), full) == [0, 2]  # type: ignore[arg-type]
    assert decided(QuotaThreshold(0.95, quota="least"), full) == [0]
    assert decided(QuotaThreshold(0.45, quota="least"), full) == [0, 2, 4, 5, 6]
    assert decided(QuotaThreshold(0.45, steps=4), full) == [0, 2]  # at most
