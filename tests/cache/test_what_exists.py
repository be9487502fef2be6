"""A block-causal pass reads the keys that are seen, and has no mask where a row sees them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.cache.passes import block_causal
from dllm.state.plan import StepPlan
from tests.support.models import Watched, family_model, random_prompts

SLOTS, UNIT = 24, 8


@pytest.mark.parametrize("block_length", [4, 8, 16])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["sdar", "bd3lm"])
@pytest.mark.parametrize("options", ["", ":prefill_chunk=8", ":prefill_chunk=16"])
def test_keys_end_where_the_last_column_sees(
    name: str, rows: int, block_length: int, options: str
) -> None:
    model, found = family_model(name), list[tuple[int, bool]]()
    prompts = random_prompts(rows, low=20 if options else 3, high=30)
    lengths = torch.tensor([len(prompt) for prompt in prompts])

    def note(_: Tensor, plan: StepPlan, *__: Any) -> None:
        assert plan.stored is not None
        real = (plan.stored >= 0)[..., None]
        keys = torch.arange(200)
        there = keys < running.canvas.length[:, None, None]
        seen = block_causal(plan.positions, 200, lengths, model.spec) & there & real
        assert plan.num_keys == int(torch.where(seen, keys + 1, 0).max())
        mask = plan.attention_mask
        given = torch.ones(()).bool() if mask is None else mask
        kept = slice(0, plan.num_keys)
        assert not ((given & real) ^ seen[..., kept]).any()
        found.append((plan.positions.shape[1], mask is None))

    watched: Any = Watched(model, note)
    given: dict[str, Any] = {"max_new_tokens": SLOTS, "block_length": block_length}
    given["at_eos"] = "ignore"
    running = dllm.stream(watched, prompts, cache=f"block_causal{options}", **given)
    assert list(running)
    exact = dllm.generate(model, prompts, cache="none", **given)
    assert running.output.sequences == exact.sequences
    assert all(unmasked == (rows == 1 and num_fed <= UNIT) for num_fed, unmasked in found)
    if block_length <= UNIT:
        assert any(num_fed <= UNIT for num_fed, _ in found)
