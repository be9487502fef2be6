"""Streaming-dLLM's suffix: what a pass feeds and sees, and whole runs beside the published loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.cache.pruned_suffix import PrunedSuffix
from dllm.schedulers.relaxed_threshold import RelaxedThreshold
from dllm.state.plan import StepPlan
from tests.support.models import Watched, golden_model, random_prompts

THRESHOLD, RELAX, SLOTS, BLOCK = 0.4, 0.6, 32, 8


def test_passes_by_hand() -> None:
    # 3 columns of a prompt and 16 slots: of the first block's suffix two columns and the last.
    passes = []

    def check(tokens: Any, plan: StepPlan, *_: Any) -> None:
        assert plan.attention_mask is not None
        seen = plan.attention_mask[0, 0].nonzero()[:, 0].tolist()
        passes.append((plan.positions[0].tolist(), seen))

    watched: Any = Watched(golden_model("llada_gqa"), check)
    given: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "at_eos": "ignore"}
    cache = {"name": "pruned_suffix", "window": 2}
    dllm.generate(watched, [[7, 8, 9]], cache=cache, scheduler="fixed_quota:steps=8", **given)
    first = [*range(13), 18]
    assert passes[:4] == [(first, first), *[(first[3:], first)] * 3]
    whole = [*range(19)]
    assert passes[4:] == [(whole, whole), *[(whole[11:], whole)] * 3]


@torch.inference_mode()
def published(model: Any, prompt: list[int], window: int, end: int) -> tuple[list[int], int]:
    """One row decoded as the authors' loop goes: its tokens, and the passes."""
    mask, start, passes = model.spec.mask_token_id, len(prompt), 0
    row = torch.tensor([*prompt, *[mask] * SLOTS])
    total = len(row)
    for begin in range(start, total, BLOCK):
        behind = [*range(begin + BLOCK, total)]
        kept = behind[:window] + (behind[-1:] if len(behind) > window else [])
        columns, share = [*range(begin + BLOCK), *kept], 1.0
        store = model.new_store(1, total)
        while mask in row[begin : begin + BLOCK]:
            at = torch.tensor([columns])
            seen = torch.zeros(1, 1, total, dtype=torch.bool)
            seen[..., [*range(begin + BLOCK), *kept]] = True
            plan = StepPlan(
                kind="step",
                positions=at,
                logit_rows=torch.arange(len(columns))[None],
                num_keys=total,
                attention_mask=seen,
                stored=at,
            )
            logits = model.forward(row[at], plan, store)[0].clone()
            logits[:, mask] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            open_ = [place for place, column in enumerate(columns) if column < begin + BLOCK]
            open_ = [place for place in open_ if row[columns[place]] == mask]
            best = max(open_, key=lambda place: float(sure[place]))
            least = THRESHOLD * (1 - RELAX * (1 - share))
            for place in open_:
                if sure[place] >= least or place == best:
                    row[columns[place]] = token[place]
            passes, columns = passes + 1, [*range(begin, begin + BLOCK), *kept]
            share = sum(int(row[column]) == mask for column in columns) / len(columns)
        if end in row[begin : begin + BLOCK]:
            row[begin + BLOCK :] = end
            break
    return row.tolist(), passes


@pytest.mark.parametrize("end", [101, 44])  # which the model says never, and soon
@pytest.mark.parametrize("window", [0, 5, 96])
def test_runs_are_the_published_loops(window: int, end: int) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(6, seed=2)
    out = dllm.generate(
        model,
        prompts,
        scheduler=RelaxedThreshold(THRESHOLD, relax=RELAX, window=window),
        cache=PrunedSuffix(window),
        max_new_tokens=SLOTS,
        block_length=BLOCK,
        at_eos="block",
        eos_token_id=[end],
    )
    for row, prompt in enumerate(prompts):
        tokens, passes = published(model, prompt, window, end)
        assert list(out.sequences[row]) == tokens
        assert out.metrics.rows[row].forwards == passes


@pytest.mark.parametrize("name", ["llada_gqa", "dream_gqa"])
def test_a_window_over_all_is_the_prefix_cache(name: str) -> None:
    model, prompts = golden_model(name), random_prompts(4)
    given: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "scheduler": "threshold:0.3"}
    prefix = dllm.generate(model, prompts, cache="prefix", **given).sequences
    assert dllm.generate(model, prompts, cache="pruned_suffix", **given).sequences == prefix
    pruned = dllm.generate(model, prompts, cache="pruned_suffix:2", **given).sequences
    headless = dllm.generate(model, prompts, cache="pruned_suffix:2,tail=0", **given).sequences
    assert pruned not in (prefix, headless), "the model does not feel what is left out"
