"""Streaming-dLLM's threshold: its bound by hand, and whole runs beside the published rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.schedulers.relaxed_threshold import RelaxedThreshold
from tests.support.models import golden_model, random_prompts
from tests.support.views import candidates_of, view_of


def test_a_step_by_hand() -> None:
    masked = torch.tensor([[True, True, False, False]])
    sure = candidates_of([[0.75, 0.74, 0.5, 0.5]])
    scheduler = RelaxedThreshold(0.8, relax=0.25, window=6)
    length = torch.tensor([8])
    # Half of four columns and four more behind: 6 of 8 are masks, so 0.8 * (1 - 0.25 / 4) = 0.75.
    later = scheduler.decide(sure, view_of(masked, block_step=1, length=length))
    assert later.commit.tolist() == [[True, False, False, False]]
    lower = candidates_of([[0.749, 0.74, 0.5, 0.5]])
    none = scheduler.select(lower, view_of(masked, block_step=1, length=length))
    assert not none.commit.any()
    # A block's first step takes the threshold as it is.
    first = scheduler.select(sure, view_of(masked, length=length))
    assert not first.commit.any()


def published(model: Any, prompt: list[int], window: int) -> tuple[list[int], int]:
    """One row of 32 slots in blocks of 8, each pass over all of it, by the authors' threshold."""
    mask, start, passes = model.spec.mask_token_id, len(prompt), 0
    row = torch.tensor([*prompt, *[mask] * 32])
    for begin in range(start, start + 32, 8):
        share = 1.0
        while mask in row[begin : begin + 8]:
            logits = model.network(row[None])[0].clone()
            logits[:, mask] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            open_ = [at for at in range(begin, begin + 8) if row[at] == mask]
            best = max(open_, key=lambda at: float(sure[at]))
            least = 0.4 * (1 - 0.6 * (1 - share))
            chosen = [at for at in open_ if sure[at] >= least or at == best]
            row[chosen] = token[chosen]
            passes += 1
            rest = len(row) - begin - 8
            seen = [*range(begin, begin + 8), *[-1] * min(rest, window + 1)]
            share = sum(at < 0 or int(row[at]) == mask for at in seen) / len(seen)
    return row.tolist(), passes


@pytest.mark.parametrize("window", [0, 8, 96])
def test_runs_are_the_published_loops(window: int) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(6, seed=2)
    out = dllm.generate(
        model,
        prompts,
        scheduler=RelaxedThreshold(0.4, relax=0.6, window=window),
        max_new_tokens=32,
        block_length=8,
        at_eos="ignore",
    )
    for row, prompt in enumerate(prompts):
        tokens, passes = published(model, prompt, window)
        assert list(out.sequences[row]) == tokens
        assert out.metrics.rows[row].forwards == passes
