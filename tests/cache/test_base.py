"""The interface laws of caches, at the level of plans and store."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.models import (
    BLOCK,
    MODELS,
    Watched,
    family_model,
    golden_model,
    random_prompts,
)

SLOTS: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "scheduler": "fixed_quota"}


def run(name: str, cache: Any, check: Any, prompts: Any) -> None:
    watched: Any = Watched(golden_model(name), check)
    dllm.generate(watched, prompts, cache=cache, **SLOTS)


@pytest.mark.few(6)
@pytest.mark.parametrize("cache", ["prefix", "dual", "dual:vicinity_before=2,vicinity_after=3"])
@pytest.mark.parametrize("name", MODELS)
def test_only_planned_slots_are_written(name: str, cache: str) -> None:
    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        assert plan.stored is not None
        for old, new in zip(before, (*store.keys, *store.values), strict=True):
            changed = (old != new).flatten(1).any(1).nonzero().flatten()
            assert set(changed.tolist()) <= set(store.slots(plan.stored).flatten().tolist())

    run(name, cache, check, random_prompts(3))


@pytest.mark.few(3)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_attended_to_and_what_is_not(name: str, cache: str) -> None:
    model = golden_model(name)
    prompts = [[7, 8, 9, 10], [3, 4, 5, 6, 7, 8, 9]]
    felt = []

    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        if plan.kind != "step" or plan.stored is None:
            return

        def shaken(slot: int) -> bool:
            copy = model.new_store(store.shape.num_rows, store.shape.num_columns)
            for target, source in zip((*copy.keys, *copy.values), before, strict=True):
                target.copy_(source)
                target[slot] += 100.0
            return not torch.equal(model.forward(tokens, plan, copy)[0], logits[0])

        width = store.shape.num_columns
        assert shaken(0), "the prompt's keys are not read"
        assert not shaken(int(plan.stored[0, 3])), "a slot is read before it is written"
        assert not shaken(4 + 24), "row 0 sees its padding"
        assert not shaken(width), "row 0 sees row 1"
        assert not shaken(store.scratch), "the scratch slot is read"
        felt.append(True)

    run(name, cache, check, prompts)
    assert felt


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", ["prefix", "dual", "dual:vicinity_before=2,vicinity_after=3"])
def test_shifted_models_feed_the_row_before_the_block(cache: str) -> None:
    def check(
        tokens: Tensor, plan: StepPlan, store: KVStore, before: list[Tensor], logits: Tensor
    ) -> None:
        predicted = plan.positions.gather(1, plan.logit_rows) + 1
        start = predicted[:, :1]
        assert torch.equal(predicted, start + torch.arange(8))
        assert ((start[:, 0] - torch.tensor([5, 9])) % 8 == 0).all()

    run("dream_gqa", cache, check, [[1] * 5, [2] * 9])


def test_fed_columns_match_the_closed_form() -> None:
    model, prompts = golden_model("llada_gqa"), [[5] * 10]
    length, slots, block = 34, 24, 8
    expected = {
        "none": 24 * length,
        "prefix": 3 * length + 7 * (24 + 16 + 8),
        "dual": 3 * length + 3 * 7 * block,
        "dual:vicinity_before=2,vicinity_after=3": 3 * length + 3 * 7 * (block + 5),
    }
    for cache, fed in expected.items():
        out = dllm.generate(model, prompts, cache=cache, at_eos="ignore", **SLOTS)
        assert out.metrics.tokens_fed == fed, cache
        assert out.metrics.num_forwards == slots


def test_vicinity_of_everything_is_exact() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    exact = dllm.generate(model, prompts, **SLOTS).sequences
    wide = {"name": "dual", "vicinity_before": 64, "vicinity_after": 64}
    assert dllm.generate(model, prompts, cache=wide, **SLOTS).sequences == exact


def test_wrong_caches_are_explained() -> None:
    with pytest.raises(ValueError, match="vicinity_after=-1 must be at least 0"):
        dllm.cache.registry.create("dual:vicinity_after=-1")
    with pytest.raises(ValueError, match="no option 'vicinty'"):
        dllm.cache.registry.create("dual:vicinty=1")


def test_a_first_block_may_begin_at_column_0() -> None:
    """A shifted model predicts it from the column before, which is not there."""
    model, options = family_model("fast_dllm_v2"), {**SLOTS, "scheduler": "threshold:0.3"}
    base = dllm.generate(model, [[5, 6, 7]], **options)
    assert dllm.generate(model, [[5, 6, 7]], cache="prefix", **options).sequences == base.sequences


def test_what_is_decoded_beyond_the_length_can_be_hidden() -> None:
    model, prompts = family_model("sdar"), random_prompts(4, low=5, high=30)
    options: dict[str, Any] = {"scheduler": "threshold:0.3", "at_eos": "ignore"}
    hidden, seen = ("none:beyond_block=false,beyond_length=false", "none:beyond_block=false")
    rows = [(row * BLOCK)[: len(row) // BLOCK * BLOCK or BLOCK] for row in prompts]  # whole blocks
    for count, differs in ((13, True), (8, False)):
        given = {**options, "max_new_tokens": count}
        outs = [dllm.generate(model, rows, cache=it, **given).sequences for it in (hidden, seen)]
        assert (outs[0] != outs[1]) == differs
    with pytest.raises(ValueError, match="beyond_length=False hides columns"):
        dllm.stream(family_model("e2d2"), [[1]], cache=hidden)
