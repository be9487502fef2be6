"""On a GPU: the kernels between products, tokens drawn in the kernel, queries that share keys."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

import dllm
from dllm.kernels import statistics
from dllm.models.layers import attend, explicit_attention
from dllm.models.speed.captured import Captured
from dllm.models.speed.kernel_passes import KernelPasses
from dllm.state.candidates import Sampling
from dllm.state.noise import CounterNoise
from dllm.state.plan import StepPlan
from tests.support.models import MODELS, family_model, golden_model
from tests.support.statistics import random_logits
from tests.support.ulps import NARROW

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.005}  # of the largest
NAMES = (*MODELS, "sdar", "fast_dllm_v2", "wedlm", "nemotron", "llada2_moe", "sdar_moe")


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def both(name: str, dtype: torch.dtype) -> tuple[dllm.HostedModel, dllm.HostedModel]:
    """Returns a model with joined projections by operations, and by the kernels."""
    model = golden_model(name, "float32") if name in MODELS else family_model(name)
    model = replace(model, network=deepcopy(model.network).to(CUDA, dtype))
    quick = dllm.speed_up(model, "fused")
    assert isinstance(quick.runner, KernelPasses)
    return replace(quick, runner=None), quick


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_stored", [None, 5, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_logits(masked: bool, num_stored: int | None, name: str, dtype: torch.dtype) -> None:
    plain, quick = both(name, dtype)
    columns = torch.tensor([[2, 3, 4, 5, 6], [3, 4, 5, 6, 7]], device=CUDA)
    num_keys = 5 if num_stored is None else 10
    num_seen = num_keys + (0 if num_stored is None else 5 - num_stored)
    ends = torch.tensor([[[num_seen]], [[num_seen - 2]]], device=CUDA)
    mask = torch.arange(num_seen, device=CUDA) < ends if masked else None
    rows = torch.tensor([[1, 2], [0, 3]], device=CUDA)
    stored = None if num_stored is None else columns[:, :num_stored]
    plan = StepPlan("step", columns, rows, num_keys, mask, stored)
    tokens = torch.tensor([[5, 90, 7, 127, 127], [3, 127, 127, 8, 100]], device=CUDA)
    with torch.inference_mode():
        expected, found = (
            model.forward(tokens, plan, model.new_store(2, 10)).float() for model in (plain, quick)
        )
    assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("name", ["llada_gqa", "dream_gqa", "sdar"])
def test_a_graph_of_the_kernels(name: str) -> None:
    plain, quick = both(name, torch.float32)
    fast = dllm.speed_up(plain, "fused", "captured")
    options: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "scheduler": "fixed_quota"}
    options["cache"] = "block_causal" if name == "sdar" else "dual"
    for length in (5, 40, 21, 33):
        prompt = [[(7 * n) % 90 for n in range(length)]]
        expected = dllm.generate(plain, prompt, **options).sequences
        assert dllm.generate(quick, prompt, **options).sequences == expected
        assert dllm.generate(fast, prompt, **options).sequences == expected
    assert isinstance(fast.runner, Captured)
    assert fast.runner.failed is None
    steps = [key for key in fast.runner._captured if key.inputs[0] == (1, 8)]
    assert 0 < len(steps) <= 4


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("confidence", ["raw", "tempered"])
@pytest.mark.parametrize("size", [(1, 4, 500), (2, 32, 126464), (1, 8, 152064)])
def test_drawn_tokens(
    size: Any, confidence: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(7, temperature=0.7, confidence=confidence, lean=True)
    logits = random_logits(*size).to(CUDA, dtype)
    columns = torch.arange(size[1], device=CUDA).expand(size[:2])
    step = torch.arange(size[0], device=CUDA)
    quick = sampling.propose(logits, CounterNoise(step), columns, step)
    assert quick.measured is not None
    monkeypatch.setattr(statistics, "has_kernel", lambda device: False)
    usual = sampling.propose(logits, CounterNoise(step), columns, step)
    assert torch.equal(quick.token, usual.token)
    for name in ("confidence", "entropy", "margin"):
        ours, theirs = getattr(quick, name), getattr(usual, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_query", [False, True])
def test_queries_that_share_keys_under_a_mask(per_query: bool) -> None:
    source = torch.Generator(CUDA).manual_seed(0)
    q, k, v = (
        torch.randn(2, n, heads, 64, generator=source, device=CUDA, dtype=torch.bfloat16)
        for n, heads in ((32, 8), (100, 2), (100, 2))
    )
    mask = torch.rand(2, 32 if per_query else 1, 100, generator=source, device=CUDA) > 0.5
    heads = (q.transpose(1, 2).float(), k.transpose(1, 2).float(), v.transpose(1, 2).float())
    expected = explicit_attention(*heads, mask[:, None])[0].transpose(1, 2)
    torch.testing.assert_close(attend(q, k, v, mask).float(), expected, rtol=0.03, atol=0.03)
