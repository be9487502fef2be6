"""Sliding blocks: a step by hand, and whole runs beside the published loop written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers import registry
from dllm.schedulers.sliding import Sliding
from dllm.schedulers.threshold import Threshold
from tests.support.models import golden_model, random_prompts
from tests.support.views import candidates_of, layout_of, view_of


def test_a_step_by_hand() -> None:
    # Blocks of 3 in 8 columns, of which the first and the third hold tokens: 3 + 2 are in reach.
    masked = torch.tensor([[False, True, False, True, True, True, True, True]])
    sure = [[0.9, 0.2, 0.9, 0.95, 0.3, 0.99, 0.2, 0.2]]
    layout = layout_of(1, 8)
    layout = type(layout)(**{**vars(layout), "block_length": 3})
    block = torch.tensor([[True] * 5 + [False] * 3])
    view = view_of(masked, block_step=1, layout=layout, block=block)
    decision = Sliding(Threshold(0.9)).decide(candidates_of(sure), view)
    assert decision.commit.tolist() == [[False] * 3 + [True] + [False] * 4]  # column 5 is beyond
    assert decision.block_end is not None
    assert decision.block_end.tolist() == [6]
    near = Sliding(Threshold(0.9), most=4).decide(candidates_of(sure), view)
    assert near.block_end is not None
    assert near.block_end.tolist() == [5]  # four columns from column 1


def published(model: Any, prompt: list[int], slots: int, block: int, most: int | None) -> Any:
    """One row decoded as the authors' loop goes: its tokens, and the passes."""
    mask, start = model.spec.mask_token_id, len(prompt)
    row = torch.tensor([*prompt, *[mask] * slots])
    written = 0
    for passes in range(1, 1000):
        first = min(at for at in range(start, len(row)) if row[at] == mask)
        limit = len(row) if most is None else min(first + most, len(row))
        end = min(start + block + written, limit)
        logits = model.network(row[None])[0].clone()
        logits[:, mask] = -torch.inf
        sure, token = logits.softmax(-1).max(-1)
        open_ = [at for at in range(first, end) if row[at] == mask]
        best = max(open_, key=lambda at: float(sure[at]))
        chosen = [at for at in open_ if sure[at] >= 0.3 or at == best]
        row[chosen] = token[chosen]
        written += len(chosen)
        if not bool((row == mask).any()):
            return row.tolist(), passes
    raise AssertionError("it does not end")


@pytest.mark.parametrize("most", [None, 8, 12])
def test_runs_are_the_published_loops(most: int | None) -> None:
    model, slots, block = golden_model("llada_gqa"), 32, 8
    prompts = random_prompts(6, seed=3)
    out = dllm.generate(
        model,
        prompts,
        scheduler=Sliding(Threshold(0.3), most=most),
        max_new_tokens=slots,
        block_length=block,
        at_eos="ignore",
    )
    for row, prompt in enumerate(prompts):
        tokens, passes = published(model, prompt, slots, block, most)
        assert list(out.sequences[row]) == tokens
        assert out.metrics.rows[row].forwards == passes


def test_steps_of_inner_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot share steps among blocks"):
        registry.create({"name": "sliding", "inner": "fixed_quota:8"})
    assert registry.create({"name": "sliding", "inner": "fixed_quota"})
