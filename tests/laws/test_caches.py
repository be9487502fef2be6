"""Laws of every cache, checked on the passes that it plans: what they write, see and return."""

from __future__ import annotations

import copy
import functools
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.cache import registry as caches
from dllm.models.layer_policies import FeatureReuse, KeyRetention, RetainedKeys
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.laws import CACHES, is_first, partner
from tests.support.models import MODELS, model_of, random_prompts

ROOMS = ("llada_gqa", "dream_gqa", "sdar", "fast_dllm_v2", "bd3lm", "wedlm", "e2d2", "e2d2_shared")


def cases() -> list[Any]:
    """Returns each cache that stores keys with each model that it serves.

    The fast suite has its first settings with the first of them, and with a shifted one.
    """
    found = []
    for cache, name in itertools.product(CACHES, ROOMS):
        if caches.create(cache).uses_store and partner(name, cache):
            wide = name not in MODELS and partner(ROOMS[0], cache)
            marks = (pytest.mark.slow,) if wide or not is_first(cache) else ()
            found.append(pytest.param(name, cache, marks=marks))
    return found


class Witness:
    """A model that keeps its passes: tokens, plan, the store before and after, the logits."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model
        self.passes: list[tuple[Tensor, StepPlan, KVStore, KVStore, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
        before = copy.deepcopy(store)
        logits = self.model.forward(tokens, plan, store)
        self.passes.append((tokens, plan, before, copy.deepcopy(store), logits.clone()))
        return logits


@functools.cache
@torch.inference_mode()
def passes(name: str, cache: str) -> Witness:
    """Returns the passes of a generation, which tests share and leave as they are."""
    witness: Any = Witness(model_of(name))
    scheduler = partner(name, cache)
    prompts = [[token % 100 for token in row] for row in random_prompts(3, high=20)]
    slots: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "seed": 0}
    slots |= {"scheduler": scheduler, "cache": cache, "at_eos": "ignore"}
    dllm.generate(witness, prompts, **slots)
    assert len(witness.passes) >= 6
    return witness


# Whose next refresh never comes.
ENDLESS = ("window_diffusion:4,window=10,refresh=1000000,slides=false", "dkv:1000000")


@pytest.mark.parametrize("cache", [*CACHES, *ENDLESS], ids=str)
def test_no_step_commits_nothing(cache: str) -> None:
    """Whatever a cache feeds, a plain scheduler finds a column to commit in it."""
    name = next(name for name in ROOMS if partner(name, cache))
    scheduler, num_slots = partner(name, cache), 32
    options: dict[str, Any] = {"max_new_tokens": num_slots, "block_length": 8, "seed": 0}
    options |= {"scheduler": scheduler, "cache": cache, "at_eos": "ignore"}
    steps = iter(dllm.stream(model_of(name), random_prompts(3, high=20), **options))
    # Rows that wait for each other at a block's end take no part.
    committed = [event.committed.any() for event in itertools.islice(steps, 4 * num_slots)]
    assert all(committed)
    assert len(committed) < 4 * num_slots


@pytest.mark.parametrize(("name", "cache"), cases())
def test_a_pass_writes_the_slots_that_it_names_and_no_others(name: str, cache: str) -> None:
    num_changing = 0
    for _, plan, before, after, _ in passes(name, cache).passes:
        assert plan.stored is not None
        named = torch.zeros(before.scratch + 1, dtype=torch.bool)
        slots = before.slots(plan.stored)
        named[slots.flatten()] = True
        named[before.scratch] = True
        columns = plan.positions[:, : slots.shape[1]]
        kept = slots[(slots != before.scratch) & (columns < plan.num_keys)]
        assert len(kept.unique()) == len(kept)  # only what nobody sees is written twice
        changed = torch.zeros_like(named)
        for held, now in zip(before.keys, after.keys, strict=True):
            changed |= (held != now).flatten(1).any(1)
        assert not (changed & ~named).any()
        num_changing += bool(changed[kept].any())
    assert num_changing >= 4


@torch.inference_mode()
@pytest.mark.parametrize(("name", "cache"), cases())
def test_hidden_keys_change_nothing_and_visible_ones_do(name: str, cache: str) -> None:
    model, hidden, visible = model_of(name), 0, 0
    witness = passes(name, cache)
    for tokens, plan, before, _, logits in witness.passes[1:]:
        assert plan.stored is not None
        num_rows = tokens.shape[0]
        seen = torch.ones(num_rows, plan.num_keys, dtype=torch.bool)
        if plan.attention_mask is not None:
            seen = plan.attention_mask.any(1)[:, : plan.num_keys]
        slots = before.slots(torch.arange(plan.num_keys).expand(num_rows, -1))
        stale = ~torch.isin(slots, before.slots(plan.stored))
        for places, alike in ((slots[stale & ~seen], True), (slots[stale & seen], False)):
            if len(places):
                other = copy.deepcopy(before)
                for held in (*other.keys, *other.values):
                    held[places] += 1000
                again = model.forward(tokens, plan, other)
                if alike or not isinstance(
                    plan.policy, RetainedKeys
                ):  # then a layer may see none of them
                    assert torch.equal(again, logits) == alike
                hidden, visible = hidden + alike, visible + (not alike)
    policies = [plan.policy for _, plan, *_ in witness.passes]
    reuse = any(isinstance(policy, FeatureReuse) for policy in policies)
    assert visible or reuse or any(isinstance(policy, KeyRetention) for policy in policies)
    assert hidden or reuse or model.spec.attention == "full"  # rows of one length see all


@torch.inference_mode()
@pytest.mark.parametrize(("name", "cache"), cases())
def test_the_order_in_which_columns_are_fed_means_nothing(name: str, cache: str) -> None:
    model, source = model_of(name), torch.Generator().manual_seed(2)
    for tokens, plan, before, _, logits in passes(name, cache).passes:
        assert plan.stored is not None
        count = plan.stored.shape[1]  # what is stored comes first
        stored = torch.randperm(count, generator=source)
        others = torch.randperm(tokens.shape[1] - count, generator=source)
        order = torch.cat([stored, count + others])
        place, mask = order.argsort(), plan.attention_mask
        if mask is not None and mask.shape[1] > 1:
            keys = torch.cat([torch.arange(plan.num_keys), plan.num_keys + others])
            mask = mask[:, order][..., keys]
        shuffled = replace(
            plan,
            positions=plan.positions[:, order],
            stored=plan.stored[:, stored],
            logit_rows=place[plan.logit_rows],
            attention_mask=mask,
        )
        if not isinstance(plan.policy, KeyRetention | FeatureReuse):  # queries by their place
            again = model.forward(tokens[:, order], shuffled, copy.deepcopy(before))
            torch.testing.assert_close(again, logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "cache"), cases())
def test_logits_come_from_the_column_that_predicts_theirs(name: str, cache: str) -> None:
    model: Any = Witness(model_of(name))
    scheduler = partner(name, cache)
    options: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "at_eos": "ignore"}
    options |= {"scheduler": scheduler, "cache": cache, "seed": 0}
    running = dllm.stream(model, [[5, 6, 7], [9] * 12], **options)
    for event in running:
        plan = model.passes[-1][1]
        window = event.columns.shape[1]
        head = plan.positions.gather(1, plan.logit_rows[:, :window])
        right = head == event.columns - model.spec.logit_shift
        assert right[event.committed].all()
        if plan.known is not None:
            ends = torch.tensor(running.canvas.layout.lengths)[:, None]
            assert right[plan.known & (event.columns < ends)].all()
