"""FLOPs from shapes against torch's own counter, and closed forms of whole generations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dllm
from dllm.eval.run.results import Result, append, read_results
from dllm.eval.run.summary import summarise
from dllm.models import HostedModel, NetworkConfig
from dllm.models.cost import cost_of, network_cost
from dllm.models.transformer import Transformer
from tests.golden import replay
from tests.golden.methods import METHODS
from tests.support import GOLDEN
from tests.support.counters import GroupedFlops
from tests.support.marks import crossed
from tests.support.models import MODELS, golden_model, random_prompts
from tests.support.oracles import ORACLES, hosted

SLOTS: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}
RECORDED = (
    *("fastdllm_nocache", "fastdllm_prefix_cache", "fastdllm_dual_cache"),
    *("fastdllm_dream_block_cache", "dkv_decode", "window_diffusion_llada", "wino"),
)
LLADA = NetworkConfig(126464, 4096, 12288, 32, 32, 32, 128, 5e5, 1e-5)
DREAM = NetworkConfig(152064, 3584, 18944, 28, 28, 4, 128, 1e6, 1e-6, qkv_bias=True)


def counted(model: HostedModel, **given: Any) -> tuple[dllm.Metrics, int]:
    """Returns the metrics of a generation, and the FLOPs that torch counted in it."""
    prompts = random_prompts(3, high=20)
    counter = FlopCounterMode(display=False)
    # The counter does not know the CPU's fused attention; the plain one is two matrix products.
    with counter, sdpa_kernel(SDPBackend.MATH):
        out = dllm.generate(model, prompts, **{**SLOTS, **given})
    return out.metrics, counter.get_total_flops()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("name", "cache"), crossed(MODELS, ("none", "prefix", "dual:vicinity_before=3"))
)
def test_flops_are_those_that_torch_counts(name: str, cache: str) -> None:
    metrics, flops = counted(golden_model(name, "float32"), cache=cache)
    assert metrics.flops == flops > 0


@pytest.mark.few(2)
@pytest.mark.parametrize("architecture", ORACLES)
def test_flops_of_every_family(architecture: str, tmp_path: Path) -> None:
    model = hosted(architecture, tmp_path)
    prompts = [[3, 4, 5], [6] * 9]
    length: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}
    counter = GroupedFlops()
    with counter, sdpa_kernel(SDPBackend.MATH):
        metrics = dllm.generate(model, prompts, **length).metrics
    assert metrics.flops == counter.get_total_flops() > 0


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "given",
    [
        {"guidance_scale": 1.0, "cache": "dual"},
        {"scheduler": "lopa:0.6,branches=3", "cache": "prefix"},
        {"scheduler": "wino:0.4,threshold_back=0.5", "cache": "dual"},
    ],
    ids=str,
)
def test_guidance_variants_and_shadows_are_counted(given: dict[str, Any]) -> None:
    metrics, flops = counted(golden_model("llada_gqa", "float32"), **given)
    assert metrics.flops == flops > 0


def test_fused_projections_and_tied_heads_cost_the_same() -> None:
    plain = NetworkConfig(50, 32, 48, 3, 4, 2, 8, 1e4, 1e-6)
    other = NetworkConfig(50, 32, 48, 3, 4, 2, 8, 1e4, 1e-6, fused_qkv=True, tie_embeddings=True)
    counts = []
    for config in (plain, other):
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
            Transformer(config)(torch.zeros(2, 20, dtype=torch.long))
        counts.append(counter.get_total_flops())
    cost = network_cost(plain, 4)
    assert cost == network_cost(other, 4)
    expected = 40 * cost.token_flops + 2 * 20 * 20 * cost.pair_flops + 40 * cost.head_flops
    assert counts == [expected, expected]


def test_prices_worked_by_hand() -> None:
    # d=3, d_ff=5, 2 layers, 4 heads of 2, 2 kv heads, 7 tokens.
    cost = network_cost(NetworkConfig(7, 3, 5, 2, 4, 2, 2, 1e4, 1e-6), 2)
    # q 3x8, k and v 3x4, out 8x3, three feed-forward matrices 3x5: 117 multiply-adds a layer.
    assert cost.token_flops == 2 * 2 * (24 + 12 + 12 + 24 + 45)
    assert cost.pair_flops == 2 * (2 * 8 + 2 * 8)  # scores and values of 8 elements, 2 layers
    assert cost.head_flops == 2 * 3 * 7
    assert cost.slot_bytes == 2 * (4 + 4) * 2  # keys and values of 4 elements, 2 bytes each


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("config", "flops", "slot"),
    [(LLADA, (13.96e9, 0.524e6, 1.036e9), 512), (DREAM, (13.05e9, 0.401e6, 1.090e9), 56)],
)
def test_prices_of_published_models(
    config: NetworkConfig, flops: tuple[float, ...], slot: int
) -> None:
    cost = network_cost(config, itemsize=2)
    assert (cost.token_flops, cost.pair_flops, cost.head_flops) == pytest.approx(flops, rel=2e-3)
    assert cost.slot_bytes == slot * 1024


def test_a_whole_generation_in_closed_form() -> None:
    """One row of 10 prompt tokens and 24 slots in blocks of 8, one token a step."""
    model = golden_model("llada_gqa")
    cost, length, block = model.cost, 34, 8
    fed = {
        "none": [length] * 24,
        "prefix": [34, *[24] * 7, 34, *[16] * 7, 34, *[8] * 7],
        "dual": [34, *[8] * 7] * 3,
    }
    for cache, columns in fed.items():
        metrics = dllm.generate(
            model, [[5] * 10], cache=cache, scheduler="fixed_quota", **SLOTS
        ).metrics
        assert metrics.fed == tuple(columns), cache
        assert metrics.tokens_fed == sum(columns)
        pairs = sum(columns) * length  # whatever is fed attends to the whole row
        rows = 24 * block * cost.head_flops
        whole = sum(columns) * cost.token_flops + pairs * cost.pair_flops + rows
        # The last layer forms keys and values of all, and goes on with the block's columns.
        beside = sum(columns) - 24 * block
        tail = cost.tail_flops + length * cost.pair_flops // cost.num_layers
        assert metrics.flops == whole - beside * tail


@pytest.mark.few(3)
@pytest.mark.parametrize("method", RECORDED)
def test_the_columns_fed_are_those_recorded(method: str) -> None:
    """`metrics.fed` against the input lengths of the official implementations."""
    cases = json.loads((GOLDEN / "cases" / f"{method}.json").read_text())
    compared = 0
    for case in (cases if isinstance(cases, list) else cases["cases"])[:2]:
        args, slots = case["args"], replay.num_new_tokens(case)
        settings = {
            "max_new_tokens": slots,
            "block_length": args.get("block_length", slots),
            "at_eos": "ignore",
            "statistics_dtype": torch.float64,
            **METHODS[replay.method_of(case)](case),
        }
        model = golden_model(case["model"], case["dtype"])
        metrics = dllm.generate(model, [case["prompt"]], **settings).metrics
        recorded = [step["input_len"] for step in case["trace"] if not replay.idle(step, case)]
        assert list(metrics.fed) == recorded, case["id"]
        compared += 1
    assert compared


def test_flops_of_a_batch_are_those_of_its_rows() -> None:
    model = golden_model("dream_gqa")
    one = dllm.generate(model, [[5] * 10], cache="dual", scheduler="fixed_quota", **SLOTS).metrics
    four = dllm.generate(
        model, [[5] * 10] * 4, cache="dual", scheduler="fixed_quota", **SLOTS
    ).metrics
    assert four.fed == one.fed
    assert one.flops is not None
    assert four.flops == 4 * one.flops


def test_a_wrapped_module_has_no_price() -> None:
    network = golden_model("llada_gqa").network
    model = dllm.wrap(network, mask_token_id=126, eos_token_id=127, vocab_size=128)
    assert cost_of(model) is None
    metrics = dllm.generate(model, [[5] * 10], **SLOTS).metrics
    assert metrics.flops is None
    assert metrics.fed == (34,) * metrics.num_forwards
    assert json.loads(json.dumps(metrics.to_dict()))["flops"] is None


def test_results_without_flops_can_be_read(tmp_path: Path) -> None:
    settings = {
        "scheduler": dllm.schedulers.registry.create("threshold").summary(),
        "cache": dllm.cache.registry.create("none").summary(),
    }
    new = Result("run", "b", "", "", "", True, 9, 5, 5, 2, 2, 1.0, 1.0, "eos", settings, 100.0)
    old = {k: v for k, v in asdict(new).items() if k != "flops"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**old, "id": "a"}) + "\n")
    append(path, [new])
    results = read_results(path)
    assert [result.flops for result in results.values()] == [None, 100.0]
    assert summarise([new]).flops == 100.0
    assert summarise(list(results.values())).flops is None
