"""Packed weights give the products of the usual ones."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import dllm
from benchmarks.shapes import random_model
from dllm.models.speed import packed as packing
from dllm.models.speed.packed import PackedLinear, pack
from tests.support.models import golden_model, random_prompts

BFLOAT16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 8, 32, 33, 64, 65, 200])
def test_products_are_the_same(
    rows: int, bias: bool, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "prefers_onednn", lambda: by_onednn)
    torch.manual_seed(rows)
    linear = nn.Linear(48, 80, bias=bias).requires_grad_(False)
    x = torch.randn(rows, 48)
    torch.testing.assert_close(PackedLinear.of(linear)(x), linear(x), rtol=1e-5, atol=1e-6)
    shaped = x.view(1, rows, 48)
    assert PackedLinear.of(linear)(shaped).shape == (1, rows, 80)


def test_the_library_that_is_clearly_faster_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = packing.prefers_onednn.__wrapped__
    for clearly, taken in ((0, True), (math.inf, False)):
        monkeypatch.setattr(packing, "_CLEARLY", clearly)
        assert tried() == taken
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(packing, "_CLEARLY", 0)
    assert not tried()


@pytest.mark.skipif(not BFLOAT16, reason="this CPU has no bfloat16 arithmetic")
def test_narrow_products_are_the_same() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80).bfloat16().requires_grad_(False)
    x = torch.randn(3, 40, 48).bfloat16()
    torch.testing.assert_close(PackedLinear.of(linear)(x), linear(x), rtol=2e-2, atol=2e-2)


@pytest.mark.few(3)
@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("name", ["llada_gqa", "dream_gqa"])
def test_no_token_changes(
    name: str, cache: str, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "prefers_onednn", lambda: by_onednn)
    model = golden_model(name, "float32")
    network = copy.deepcopy(model.network)
    pack(network)
    packed = dllm.HostedModel(model.name, network, model.spec)
    options: dict[str, Any] = {"max_new_tokens": 32, "block_length": 16, "cache": cache}
    for scheduler in ("fixed_quota", "threshold:0.7"):
        usual, quick = (
            dllm.generate(m, random_prompts(3), scheduler=scheduler, seed=0, **options)
            for m in (model, packed)
        )
        assert quick.sequences == usual.sequences


def test_parameters_stay_and_packing_twice_is_packing_once() -> None:
    model = random_model("tiny", torch.float32)
    before = {name: p.data_ptr() for name, p in model.network.named_parameters()}
    pack(model.network)
    first = {id(m) for m in model.network.modules() if isinstance(m, PackedLinear)}
    pack(model.network)
    assert {id(m) for m in model.network.modules() if isinstance(m, PackedLinear)} == first
    assert {name: p.data_ptr() for name, p in model.network.named_parameters()} == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="only float32 and bfloat16"):
        pack(nn.Sequential(nn.Linear(4, 4, dtype=dtype)))
    with pytest.raises(ValueError, match="weights on meta cannot be packed"):
        pack(nn.Sequential(nn.Linear(4, 4, device="meta")))
