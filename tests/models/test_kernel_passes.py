"""Whole networks by the kernels between their products, interpreted: logits, K/V and tokens."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.models import speed
from dllm.models.speed.compiled import Compiled
from dllm.models.speed.linear import fuse
from dllm.state.plan import StepPlan
from tests.support.models import MODELS, family_model, golden_model
from tests.support.speed import decodings
from tests.support.ulps import NARROW

pytest.importorskip("triton")

from dllm.models.speed.kernel_passes import KernelPasses, fault

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter's numpy
    pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted: tests/gpu has a card's"),
]
CPU = torch.device("cpu")
NAMES = (
    *MODELS,
    "sdar",
    "fast_dllm_v2",
    "wedlm",
    "nemotron",
    "bd3lm",
    "llada2_moe",
    "sdar_moe",
)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}  # of the largest


@cache
def both(name: str, dtype: torch.dtype) -> tuple[dllm.HostedModel, dllm.HostedModel]:
    """Returns a model with joined projections as it is, and by the kernels."""
    model = golden_model(name, "float32") if name in MODELS else family_model(name)
    network = deepcopy(model.network).to(dtype)
    fuse(network)
    plain = replace(model, network=network)
    return plain, replace(plain, runner=KernelPasses(network))


def plans(num_stored: int | None, ragged: bool, narrow: bool) -> StepPlan:
    """Returns a pass over five columns of two rows, over a store of ten."""
    columns = torch.tensor([[2, 3, 4, 5, 6], [3, 4, 5, 6, 7]])
    rows = torch.tensor([[1, 2], [0, 3]]) if narrow else torch.arange(5).expand(2, 5)
    stored = None if num_stored is None else columns[:, :num_stored]
    num_seen = 5 if num_stored is None else 10 + 5 - num_stored
    mask = torch.arange(num_seen) < torch.tensor([[[num_seen]], [[num_seen - 2]]])
    return StepPlan(
        "step",
        columns,
        rows,
        5 if num_stored is None else 10,
        attention_mask=mask if ragged else None,
        stored=stored,
    )


PASSES = [(None, False, False), (None, True, True), (5, True, True), (5, False, False)]
PASSES += [(3, True, False), (3, False, True)]


@pytest.mark.few(8)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", PASSES)
def test_logits_and_stored_keys(kind: Any, name: str, dtype: torch.dtype) -> None:
    plain, quick = both(name, dtype)
    plan, stores = plans(*kind), [plain.new_store(2, 10), quick.new_store(2, 10)]
    tokens = torch.tensor([[5, 90, 7, 127, 127], [3, 127, 127, 8, 100]])
    with torch.inference_mode():
        expected, found = (
            model.forward(tokens, plan, store)
            for model, store in zip((plain, quick), stores, strict=True)
        )
    assert_near(found, expected, dtype)
    for kind_of in ("keys", "values"):
        ours, theirs = (torch.stack(getattr(store, kind_of))[:, :-1] for store in stores)
        assert_near(ours, theirs, dtype)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == expected.dtype
    largest = expected.float().abs().max().clamp(min=1e-3)
    assert (found.float() - expected.float()).abs().max() <= TOLERANCE[dtype] * largest


@pytest.mark.few(1)
@pytest.mark.parametrize("place", range(len(decodings())))
def test_tokens_are_those_of_the_operations_themselves(place: int) -> None:
    name, settings = decodings()[place]
    plain, quick = both(name, torch.float32)
    expected, found = (
        dllm.generate(model, [[5, 90, 7]], max_new_tokens=8, block_length=8, seed=0, **settings)
        for model in (plain, quick)
    )
    assert found.sequences == expected.sequences


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["d2cache:4", "dllm_cache"])
def test_caches_that_do_more_than_keys_and_values(cache: str) -> None:
    plain, quick = both("llada_gqa", torch.float32)
    options: Any = {"cache": cache, "scheduler": "fixed_quota", "max_new_tokens": 8}
    expected, found = (dllm.generate(model, [[5, 90, 7]], **options) for model in (plain, quick))
    assert found.sequences == expected.sequences


def test_each_kernel_is_tried_once() -> None:
    for dtype in NARROW:
        assert fault(CPU, dtype) == ""


def test_where_the_kernels_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On CUDA with Triton, with joined projections, where nobody else runs the passes."""

    def own(name: str, dtype: torch.dtype = torch.float32) -> dllm.HostedModel:
        model = family_model(name)
        return replace(model, network=deepcopy(model.network).to(dtype))

    assert dllm.speed_up(own("sdar"), "fused").runner is None  # a CPU
    monkeypatch.setattr(speed, "has_kernel", lambda device: True)
    assert isinstance(dllm.speed_up(own("sdar"), "fused").runner, KernelPasses)
    assert isinstance(dllm.speed_up(own("sdar"), "fused", "compiled").runner, Compiled)
    assert dllm.speed_up(own("sdar", torch.float64), "fused").runner is None
    assert dllm.speed_up(own("e2d2"), "fused").runner is None
    assert dllm.speed_up(own("sdar")).runner is None
    monkeypatch.setattr("dllm.models.speed.kernel_passes.gated", broken)
    assert dllm.speed_up(own("sdar"), "fused").runner is None
    assert "run one by one, without Triton: RuntimeError: no compiler" in caplog.text


def broken(*_: Any) -> Any:
    raise RuntimeError("no compiler\nand more")
