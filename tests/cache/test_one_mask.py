"""Passes over one block of each row: its columns see the same keys, so one mask serves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.cache.passes import block_causal
from dllm.state.plan import StepPlan
from tests.support.models import Watched, family_model, random_prompts


@pytest.mark.parametrize("block_length", [4, 8, 16])
@pytest.mark.parametrize(("name", "shared"), [("sdar", True), ("bd3lm", True), ("wedlm", False)])
def test_one_mask_serves_a_block(name: str, shared: bool, block_length: int) -> None:
    if name == "wedlm" and block_length != 8:
        pytest.skip("has no blocks")
    model, found = family_model(name), list[tuple[bool, bool]]()
    prompts = random_prompts(3, low=3, high=20)
    lengths = torch.tensor([len(prompt) for prompt in prompts])

    def note(_: Tensor, plan: StepPlan, *__: Any) -> None:
        assert plan.attention_mask is not None
        num_fed = plan.positions.shape[1]
        one = plan.attention_mask.shape[1] == 1
        found.append((one, num_fed <= 8))
        if one and shared:
            each = block_causal(plan.positions, plan.num_keys, lengths, model.spec)
            # Columns that fill up a row are not kept, whatever they see.
            assert plan.stored is not None
            assert ((each == each[:, :1]).all(-1) | (plan.stored < 0)).all()

    watched: Any = Watched(model, note)
    cache = "streaming" if name == "wedlm" else "block_causal"
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": block_length, "cache": cache}
    if name == "wedlm":
        options["scheduler"] = "wedlm:2"
    out = dllm.generate(watched, prompts, **options)
    assert out.sequences == dllm.generate(model, prompts, **options | {"cache": "none"}).sequences
    if shared:
        assert all(one == small for one, small in found)
        assert {one for one, _ in found} >= ({True} if block_length <= 8 else {False})
    else:
        assert not any(one for one, _ in found)
