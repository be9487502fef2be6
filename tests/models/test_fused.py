"""Joined projections, 8-bit weights, and which ways of speeding up go with which model."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dllm
from dllm.models.digest import weights_digest
from dllm.models.speed import linear, parse_ways
from dllm.models.speed.captured import Captured
from dllm.models.speed.linear import fuse, parts_of
from dllm.models.transformer import Transformer
from tests.support import GOLDEN
from tests.support.speed import FULL, cases, decode, decodings, model_of, usual


def own(name: str) -> dllm.HostedModel:
    """Returns a model whose network may be changed."""
    model = model_of(name)
    return replace(model, network=deepcopy(model.network))


@pytest.mark.few(5)
@pytest.mark.parametrize("place", cases())
def test_tokens_are_those_of_separate_projections(place: int) -> None:
    name, settings = decodings()[place]
    assert decode(dllm.speed_up(own(name), "fused"), settings) == usual(place)


@pytest.mark.parametrize(
    "name", ["llada_mha", "llada_gqa", "dream_gqa", "sdar", "fast_dllm_v2", "wedlm"]
)
def test_fused_logits_and_parts(name: str) -> None:
    model = own(name)
    network = model.network.double()
    tokens = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    expected, before = network(tokens), dict(network.named_parameters())
    count = sum(weight.numel() for weight in network.parameters())
    for _ in range(2):  # the second time there is nothing left to do
        fuse(network)
        torch.testing.assert_close(network(tokens), expected, rtol=0, atol=1e-12)
    assert sum(weight.numel() for weight in network.parameters()) == count
    assert not any(weight.requires_grad for weight in network.parameters() if name in FULL)
    assert network.config.fused_qkv
    assert network.config.fused_gate_up
    after = dict(parts_of(network, network.named_parameters()))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[part], before[part]) for part in before)


def test_a_fused_network_has_the_parameters_of_one_built_so() -> None:
    network = own("dream_gqa").network
    fuse(network)
    built = Transformer(network.config)
    assert {n: w.shape for n, w in network.named_parameters()} == {
        n: w.shape for n, w in built.named_parameters()
    }


def test_parts_are_freed_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    network, most = own("llada_mha").network, 0
    usual_cat: Callable[..., Any] = torch.cat
    count = sum(weight.numel() for weight in network.parameters())

    def cat(tensors: list[torch.Tensor]) -> torch.Tensor:
        nonlocal most
        there = sum(weight.numel() for weight in network.parameters())
        most = max(most, there + sum(tensor.numel() for tensor in tensors) - count)
        return usual_cat(tensors)

    monkeypatch.setattr(torch, "cat", cat)
    fuse(network)
    config = network.config
    assert most == 2 * config.hidden_size * config.intermediate_size


def test_a_fused_model_is_saved_as_it_was_loaded(tmp_path: Path) -> None:
    source = GOLDEN / "models" / "dream_gqa"
    dllm.save(dllm.load(source, speed="fused"), tmp_path)
    written, stored = (
        load_file(tmp_path / "model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)
    assert decode(dllm.load(tmp_path), {}) == decode(dllm.load(source), {})


def test_a_fused_model_has_the_same_weights_in_records() -> None:
    assert weights_digest(dllm.load("tiny", speed="fused")) == weights_digest(dllm.load("tiny"))


def test_eight_bits_are_named_and_near() -> None:
    pytest.importorskip("torchao")
    plain, model = dllm.load("tiny"), dllm.load("tiny", speed=["int8", "fused"])
    tokens = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    moved = (model.network(tokens) - plain.network(tokens)).abs().max()
    assert 0 < moved < 0.05 * plain.network(tokens).abs().max()
    assert model.name == "tiny+int8"
    assert weights_digest(model) != weights_digest(plain)
    question = "tom has 53 pens. tom loses 3. how many pens does tom have?"
    assert dllm.generate(model, [question], cache="dual").texts == ("53-3=50; #### 50",)
    with pytest.raises(ValueError, match="has rounded weights already: leave 'int8' out"):
        dllm.speed_up(model, "int8")


def test_eight_bits_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "find_spec", lambda name: None)
    model = own("llada_mha")
    with pytest.raises(ValueError, match=r"'int8' needs torchao: pip install 'dllm\[quantise\]'"):
        dllm.speed_up(model, "fused", "int8")
    assert not model.network.config.fused_qkv  # refused before anything was changed


def test_ways_as_they_are_written() -> None:
    assert parse_ways(None) == parse_ways(()) == ()
    assert parse_ways("fused") == ("fused",)
    assert parse_ways("captured+fused") == parse_ways(["captured", "fused"])
    assert parse_ways("captured+fused") == ("fused", "captured")


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ("capture", "'capture': did you mean 'captured'"),
        ("", "unknown way to speed a model up ''"),
        ("fused+", "unknown way to speed a model up ''"),
        ("fused+fused", "speed-up 'fused' is given twice"),
    ],
)
def test_unknown_ways(ways: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.load("tiny", speed=ways)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is on a GPU what it asks for")
def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="'tiny' is on cpu: load it with device='cuda', or leave"):
        dllm.load("tiny", speed="captured")


def test_a_runner_is_not_put_upon_another() -> None:
    model = replace(own("llada_mha"), runner=Captured(own("llada_mha").network, _Never()))
    with pytest.raises(ValueError, match="sped up already: load it with speed=None"):
        dllm.speed_up(model, "compiled")


def test_a_spread_model_is_refused() -> None:
    model = own("llada_mha")
    model.network.head.weight = torch.nn.Parameter(model.network.head.weight.to("meta"))
    with pytest.raises(ValueError, match="spread over devices or offloaded, and fused needs it on"):
        dllm.speed_up(model, "fused")


class _Never:
    def record(self, work: Any) -> Any:
        raise AssertionError
