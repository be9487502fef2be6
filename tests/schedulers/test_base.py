"""The contract of every scheduler, found by file name, and worked examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dllm import schedulers
from dllm.state.candidates import rank
from tests.support.views import candidates_of, check_contract, view_of

NAMES = schedulers.registry.names()


def test_every_part_of_the_folder_is_found() -> None:
    assert {"threshold", "factor", "fixed_quota", "dream", "quota_threshold"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    check_contract(name)


def test_threshold_accepts_equality_and_falls_back_to_the_best() -> None:
    masked = torch.tensor([[True, True, True, False], [True, True, False, False]])
    candidates = candidates_of([[0.9, 0.8, 0.95, 0.99], [0.4, 0.5, 0.99, 0.99]])
    commit = schedulers.registry.create("threshold:0.9").decide(candidates, view_of(masked)).commit
    exact = candidates.confidence[0, 0] >= 0.9
    assert commit.tolist() == [[bool(exact), False, True, False], [False, True, False, False]]


def test_factor_by_hand() -> None:
    # Thresholds by rank for factor 1: 0.5 (forced), 0.667, 0.75, 0.8.
    candidates = candidates_of([[0.99, 0.70, 0.74, 0.10]])
    masked = torch.ones(1, 4, dtype=torch.bool)
    commit = schedulers.registry.create("factor:1").decide(candidates, view_of(masked)).commit
    assert commit.tolist() == [[True, False, True, False]]
    last = {"name": "factor", "factor": 1.0, "last": "passes"}
    two = torch.tensor([[True, False, False, True]])
    commit = schedulers.registry.create(last).decide(candidates, view_of(two)).commit
    assert commit.tolist() == [[True, False, False, True]]


@pytest.mark.parametrize(("masks", "steps"), [(10, 4), (32, 32), (7, 3), (5, 8), (96, 33)])
def test_quota_sums_to_the_masks_with_the_larger_first(masks: int, steps: int) -> None:
    scheduler = schedulers.registry.create({"name": "fixed_quota", "steps": steps})
    masked = torch.ones(1, masks, dtype=torch.bool)
    candidates = candidates_of([[0.5 + index / 1000 for index in range(masks)]])
    quotas = []
    for step in range(steps):
        commit = scheduler.decide(candidates, view_of(masked, block_step=step)).commit
        quotas.append(int(commit.sum()))
        masked = masked & ~commit
    assert sum(quotas) == masks
    assert quotas == sorted(quotas, reverse=True)
    assert max(quotas) - min(quotas) <= 1


def test_random_order_ignores_the_logits() -> None:
    scheduler = schedulers.registry.create("fixed_quota:order=random,steps=4")
    masked = torch.ones(1, 8, dtype=torch.bool)
    first = scheduler.decide(candidates_of([[0.9] * 8]), view_of(masked)).commit
    rising = candidates_of([[i / 10 for i in range(1, 9)]])
    second = scheduler.decide(rising, view_of(masked)).commit
    assert torch.equal(first, second)


def test_dream_skips_what_would_commit_nothing() -> None:
    masked = torch.ones(1, 32, dtype=torch.bool)
    candidates = candidates_of([[0.5] * 32])
    reference = schedulers.registry.create("dream:entropy,steps=32,empty_steps=true")
    assert not reference.decide(candidates, view_of(masked)).commit.any()
    decision = schedulers.registry.create("dream:entropy,steps=32").decide(
        candidates, view_of(masked)
    )
    assert int(decision.commit.sum()) == 1
    assert decision.num_steps is not None
    assert decision.num_steps.tolist() == [2]


def test_rank_prefers_the_lower_column_and_puts_unmasked_last() -> None:
    score = torch.tensor([[0.5, 0.7, 0.7, 0.9]])
    masked = torch.tensor([[True, True, True, False]])
    assert rank(score, masked).tolist() == [[2, 0, 1, 3]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("treshold", "did you mean 'threshold'"),
        ("threshold:0.8,radius=4", "no option 'radius'"),
        ("threshold:high", "must be a number, in"),
        ({"threshold": 0.9}, "needs a 'name'"),
        ("fixed_quota:steps=0", "at least 1"),
        ("factor:0", "positive"),
        ("fixed_quota:order=sideways", "must be"),
    ],
)
def test_wrong_schedulers_are_explained(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedulers.registry.create(given)


def test_short_forms() -> None:
    create = schedulers.registry.create
    assert create("threshold:0.8") == create({"name": "threshold", "threshold": 0.8})
    assert create("threshold:1e-3") == create({"name": "threshold", "threshold": 0.001})
    assert create("prophet@gsm8k:mid=6") == create(
        {"name": "prophet", "high": 8.0, "mid": 6, "low": 3.5}
    )
    assert create("prophet:inner=threshold:0.8").summary()["inner"]["threshold"] == 0.8
    with pytest.raises(ValueError, match="no preset 'gsm9k': did you mean 'gsm8k'"):
        create("prophet@gsm9k")
    assert create("dream:origin,steps=4") == create(
        {"name": "dream", "algorithm": "origin", "steps": 4}
    )
