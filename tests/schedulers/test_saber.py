"""Saber: a step by hand, and whole runs beside the published loop written down row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers.saber import Saber
from tests.support.models import golden_model, random_prompts
from tests.support.views import SETUP, candidates_of, view_of


def start(rows: int = 1) -> dict[str, Any]:
    state = Saber().start(SETUP)
    return {name: value[:rows].double() for name, value in state.items()}


def test_steps_by_hand() -> None:
    scheduler, state = Saber(least=2), start()
    masked = torch.ones(1, 8, dtype=torch.bool)
    sure = [[0.9, 0.2, 0.6, 0.8, 0.5, 0.4, 0.3, 0.1]]
    first = scheduler.decide(candidates_of(sure), view_of(masked, state=state))
    # Nothing was committed, so the mean is 1: the two surest, and the less sure of them goes again.
    assert first.commit.tolist() == [[True] + [False] * 7]
    assert first.remask is not None
    assert not first.remask.any()
    masked = torch.tensor([[False] + [True] * 7])
    # The mean of 0.9 and 0.8, though 0.8 was taken back, is 0.85: column 2 alone is above it, which
    # is fewer than two. Column 0 lost most: it goes.
    sure = [[0.5, 0.2, 0.86, 0.8, 0.5, 0.4, 0.3, 0.1]]
    view = view_of(masked, block_step=1, state=first.state)
    second = scheduler.decide(candidates_of(sure), view)
    assert second.commit.tolist() == [[False, False, True, True] + [False] * 4]
    assert second.remask is not None
    assert second.remask.tolist() == [[True] + [False] * 7]
    # Columns 0, 2 and 3 count with what they had when last committed: (0.9 + 0.86 + 0.8) / 3.
    masked = torch.tensor([[True, True, False, False] + [True] * 4])
    sure = [[0.9, 0.87, 0.9, 0.9, 0.855, 0.4, 0.3, 0.1]]
    view = view_of(masked, block_step=2, state=second.state)
    third = scheduler.decide(candidates_of(sure), view)
    # Three are above it; one of the tokens goes: column 2 gained least.
    assert third.commit.tolist() == [[True, True, False, False, True, False, False, False]]
    assert third.remask is not None
    assert third.remask.tolist() == [[False, False, True] + [False] * 5]


def published(model: Any, prompt: list[int], slots: int, least: int) -> tuple[list[int], int]:
    """One row in one block, as the paper's loop goes: its tokens and the passes."""
    mask, start = model.spec.mask_token_id, len(prompt)
    row = torch.tensor([*prompt, *[mask] * slots])
    last = torch.zeros(len(row), dtype=torch.float64)
    when_chosen: dict[int, float] = {}
    for passes in range(1, 1000):
        logits = model.network(row[None])[0].clone()
        logits[:, mask] = -torch.inf
        sure, token = logits.softmax(-1).max(-1)
        open_ = [at for at in range(start, len(row)) if row[at] == mask]
        mean = sum(when_chosen.values()) / len(when_chosen) if when_chosen else 1.0
        chosen = [at for at in open_ if sure[at] > mean]
        if len(chosen) < least:
            chosen = sorted(open_, key=lambda at: -float(sure[at]))[:least]
        for at in chosen:
            row[at], when_chosen[at] = token[at], float(sure[at])
        if not bool((row == mask).any()):
            return row.tolist(), passes
        lost = sure - last
        last = sure
        held = [at for at in range(start, len(row)) if row[at] != mask]
        count = min(max(least // 2, -(-len(chosen) // 8)), len(chosen) - 1)
        row[sorted(held, key=lambda at: float(lost[at]))[:count]] = mask
    raise AssertionError("it does not end")


@pytest.mark.parametrize("least", [1, 2, 4])
def test_runs_are_the_published_loops(least: int) -> None:
    model = golden_model("llada_gqa")
    prompts, slots = random_prompts(6, seed=least), 24
    out = dllm.generate(
        model,
        prompts,
        scheduler=Saber(least=least),
        max_new_tokens=slots,
        block_length=slots,
        at_eos="ignore",
    )
    for row, prompt in enumerate(prompts):
        tokens, passes = published(model, prompt, slots, least)
        assert list(out.sequences[row]) == tokens
        assert out.metrics.rows[row].forwards == passes


def test_the_mean_goes_on_in_the_next_block() -> None:
    state = start()
    state["surest"][0, :2] = torch.tensor([0.9, 0.7], dtype=torch.float64)
    masked = torch.ones(1, 8, dtype=torch.bool)
    sure = [[0.85, 0.84, 0.83, 0.1, 0.1, 0.1, 0.1, 0.1]]
    view = view_of(masked, state=state)  # the first step of a block
    decision = Saber(least=2).decide(candidates_of(sure), view)
    assert decision.state is not None
    # Three are above 0.8; of them one goes, the least sure: no column has a past in this block.
    assert decision.commit.tolist() == [[True, True] + [False] * 6]
    assert decision.state["sum"].item() == pytest.approx(1.6)
    assert decision.state["count"].item() == 2
