"""Laws that hold for every model, scheduler and cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm
from dllm.state.plan import StepPlan
from tests.support.laws import (
    OF_SCHEDULERS,
    SLOTS,
    caches_on,
    check_fixed_tokens,
    check_host_transfers,
    core_of,
    is_first,
    marks_in,
    name_of,
    options_of,
    pairs_on,
    partner,
    refusal,
    suited,
    text_of,
)
from tests.support.marks import crossed
from tests.support.models import MODELS, Misleading, Poisoned, golden_model, random_prompts

SHORT: dict[str, Any] = {**SLOTS, "max_new_tokens": 16}  # two blocks show what a pass reads


def pairs(law: str = "", model: str = "llada_gqa", *, further: bool = False) -> list[Any]:
    """Returns all schedulers with all caches that serve a model, most of them as slow tests.

    The fast suite has each scheduler once, with the core, and each cache once, with a plain
    scheduler; of a `further` model every third scheduler alone. The slow suite has the share of a
    law, or all of them.
    """
    found, few = [], list(OF_SCHEDULERS)[::3]
    for scheduler, cache in pairs_on(model):
        fast = cache == core_of(scheduler) and is_first(scheduler)
        if further:
            fast = fast and name_of(scheduler) in few
        else:
            fast = fast or (is_first(cache) and scheduler == partner(model, cache))
        marks = () if fast else marks_in(law, model, scheduler, cache)
        name = f"{text_of(scheduler)}-{text_of(cache)}"
        found.append(pytest.param(scheduler, cache, marks=marks, id=name))
    return found


@pytest.mark.parametrize(("scheduler", "cache"), pairs())
def test_a_row_does_not_depend_on_its_batch(scheduler: Any, cache: Any) -> None:
    check_alone("llada_gqa", scheduler, cache)


@pytest.mark.few(4)
@pytest.mark.parametrize(("scheduler", "cache"), pairs("shifted", "dream_gqa", further=True))
def test_a_row_of_a_shifted_model_does_not_either(scheduler: Any, cache: Any) -> None:
    reason = refusal("dream_gqa", scheduler, cache)
    if reason:
        assert name_of(scheduler) == "wino"
        assert "logit_shift=1" in reason
        return
    check_alone("dream_gqa", scheduler, cache)


def check_alone(name: str, scheduler: Any, cache: Any) -> None:
    model, prompts = suited(golden_model(name, "float32"), scheduler), random_prompts(4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1)).tolist()
    ends = [6, 9, 13, 29, 72, 113]  # common enough that some row of a few ends early
    options = options_of(scheduler, **SLOTS, cache=cache, eos_token_id=ends)
    alone = [dllm.generate(model, [p], seed=[i], **options) for i, p in enumerate(prompts)]
    together = dllm.generate(model, [prompts[i] for i in order], seed=order, **options)
    for place, row in enumerate(order):
        assert together.sequences[place] == alone[row].sequences[0]
        assert together.metrics.rows[place] == alone[row].metrics.rows[0]
    assert any(row.finish_reason == "eos" for row in together.metrics.rows)


def test_sampling_does_not_depend_on_the_batch() -> None:
    model, prompts = golden_model("llada_gqa", "float32"), random_prompts(5)
    options: dict[str, Any] = {**SLOTS, "scheduler": "threshold:0.5", "temperature": 0.8}
    together = dllm.generate(model, prompts, seed=[7, 8, 9, 10, 11], **options)
    alone = [dllm.generate(model, [p], seed=[7 + i], **options) for i, p in enumerate(prompts)]
    assert together.sequences == tuple(out.sequences[0] for out in alone)
    other = dllm.generate(model, prompts, seed=[1, 2, 3, 4, 5], **options)
    assert other.sequences != together.sequences


@pytest.mark.parametrize(("name", "cache"), crossed(MODELS[::-1], caches_on("llada_gqa")))
def test_stale_slots_are_never_read(name: str, cache: Any) -> None:
    model: Any = golden_model(name)
    prompts = random_prompts(4)
    clean = dllm.generate(model, prompts, cache=cache, **SHORT)
    poisoned: Any = Poisoned(model)
    assert dllm.generate(poisoned, prompts, cache=cache, **SHORT).sequences == clean.sequences


@pytest.mark.parametrize(("scheduler", "cache"), pairs("unknown logits"))
def test_logits_that_a_pass_did_not_compute_are_never_read(scheduler: Any, cache: Any) -> None:
    model: Any = suited(golden_model("llada_gqa", "float32"), scheduler)
    options = options_of(scheduler, **SHORT, cache=cache, seed=0)
    first, second = (
        dllm.generate(Misleading(model, seed), random_prompts(3), **options) for seed in (100, 900)
    )
    assert first.sequences == second.sequences
    assert first.metrics.num_forwards == second.metrics.num_forwards


class Refreshing:
    """Makes any cache refresh at every step."""

    def __init__(self, cache: dllm.cache.Cache) -> None:
        self.plan_of = cache.plan

    def __call__(self, canvas: Any, status: Any, spec: Any) -> StepPlan:
        from dataclasses import replace

        return self.plan_of(canvas, replace(status, entered=True), spec)


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "cache"), crossed(MODELS, ("prefix", "dual")))
def test_refreshing_at_every_step_equals_no_cache(
    name: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = golden_model(name), random_prompts(4, low=12, high=13)
    exact = dllm.generate(model, prompts, **SLOTS)
    approximate = dllm.generate(model, prompts, cache=cache, **SLOTS)
    policy = dllm.cache.registry.create(cache)
    monkeypatch.setattr(type(policy), "plan", Refreshing(policy).__call__)
    refreshed = dllm.generate(model, prompts, cache=policy, **SLOTS)
    assert refreshed.sequences == exact.sequences
    assert approximate.sequences != exact.sequences, "the model does not feel stale keys"


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_one_refresh_a_block_and_no_empty_forward(cache: str) -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(5)
    for scheduler in ("threshold:0", "threshold:0.5", "fixed_quota"):
        out = dllm.generate(model, prompts, scheduler=scheduler, cache=cache, **SLOTS)
        assert out.metrics.forwards["refresh"] == 4
        steps = dllm.stream(model, prompts, scheduler=scheduler, cache=cache, **SLOTS)
        assert all(bool(event.committed.any()) for event in steps)
        if scheduler == "threshold:0":
            assert out.metrics.num_forwards == 4


@pytest.mark.parametrize(("scheduler", "cache"), pairs("fixed tokens"))
def test_fixed_tokens_stay_and_rows_end_full(scheduler: Any, cache: Any) -> None:
    check_fixed_tokens(scheduler, cache)


def test_the_models_feel_order_and_context() -> None:
    """A model that ignores either would pass every law above."""
    for name in MODELS:
        model, prompt = golden_model(name), random_prompts(1)[0]
        outputs = {
            dllm.generate(model, [prompt], scheduler=s, seed=0, **SLOTS).sequences
            for s in ("fixed_quota", "threshold:0", "fixed_quota:order=random")
        }
        assert len(outputs) == 3
        changed = [(prompt[0] + 1) % 100, *prompt[1:]]
        first, second = dllm.generate(model, [prompt, changed], **SLOTS).sequences
        assert first[len(prompt) :] != second[len(prompt) :]


@pytest.mark.parametrize(("scheduler", "cache"), pairs("transfers"))
def test_one_host_transfer_a_step(
    scheduler: Any, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_host_transfers(scheduler, cache, monkeypatch)
