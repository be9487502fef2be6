"""Mixtures of experts: routers, products, sums, their price, and how checkpoints hold them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import dllm
from dllm.doctor.checkpoint import LocalCheckpoint
from dllm.doctor.checkpoint import architecture as architecture_of
from dllm.models import CheckpointError, NetworkConfig, load, save
from dllm.models.config import ExpertsConfig
from dllm.models.cost import idle_parameters, network_cost
from dllm.models.experts import Experts, Router, added_up, has_grouped_product
from dllm.models.layers import MixtureOfExperts
from dllm.models.speed import Way
from dllm.models.speed.captured import Captured
from dllm.models.speed.compiled import Compiled
from dllm.models.transformer import Transformer
from tests.support import GOLDEN
from tests.support.counters import GroupedFlops
from tests.support.laws import COUNTED
from tests.support.oracles import ORACLES, hosted, oracle
from tests.support.sizes import SIZES

EXPERTS = ExpertsConfig(num_experts=8, num_active=3, intermediate_size=24)
GROUPED = replace(EXPERTS, num_groups=4, num_active_groups=2, score="sigmoid", bias="choice")
MIXTURES = [name for name, (_, config, _) in ORACLES.items() if "Moe" in type(config).__name__]


def tokens(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(count)).to(dtype)


def one_by_one(experts: Experts, x: Tensor, chosen: Tensor) -> Tensor:
    """Returns the outputs of a token's experts, each token and expert by itself."""
    rows = []
    for token, numbers in zip(x, chosen.tolist(), strict=True):
        for number in numbers:
            gate, up = F.linear(token, experts.gate_up[number]).chunk(2)
            rows.append(F.linear(F.silu(gate) * up, experts.down[number]))
    return torch.stack(rows).view(*chosen.shape, -1)


@pytest.mark.parametrize("count", [1, 5, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_are_those_of_each_expert(dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(0)
    experts = Experts(EXPERTS, 16).to(dtype).requires_grad_(False)
    x, chosen = tokens(count, dtype), torch.rand(count, 8).topk(3).indices
    chosen[chosen == 2] = 5  # an expert that nobody chose
    expected = one_by_one(experts, x, chosen)
    assert expected.std() > 0.05
    near: dict[str, Any] = {"rtol": 0, "atol": 2e-2 if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(experts.batched(x, chosen), expected, **near)
    torch.testing.assert_close(experts(x, chosen), expected, **near)
    if dtype != torch.float64:
        assert has_grouped_product(experts.down)
        torch.testing.assert_close(experts.sorted(x, chosen), expected, **near)


def test_where_there_is_a_grouped_product() -> None:
    weight = torch.empty(2, 24, 16)
    assert has_grouped_product(weight)
    assert has_grouped_product(weight.bfloat16())
    assert not has_grouped_product(weight.double())
    assert not has_grouped_product(torch.empty(2, 20, 16, dtype=torch.bfloat16))  # not aligned
    assert not has_grouped_product(weight.to("meta"))


def router(config: ExpertsConfig, logits: Tensor, bias: Tensor | None = None) -> Any:
    """Returns weights and experts of tokens whose router's product is `logits` (N, E)."""
    part = Router(config, logits.shape[1]).requires_grad_(False)
    part.weight.copy_(torch.eye(logits.shape[1]))
    if bias is not None:
        assert part.bias is not None
        part.bias.copy_(bias)
    weights, chosen = part(logits)
    order = chosen.argsort(-1)
    return weights.gather(1, order), chosen.gather(1, order)


LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, 2.5, 0.5, 2.2]])


@pytest.mark.parametrize("normalise", [False, True])
def test_a_softmax_router(normalise: bool) -> None:
    weights, chosen = router(replace(EXPERTS, normalise=normalise), LOGITS)
    assert chosen.tolist() == [[1, 5, 7]]
    shares = LOGITS.exp() / LOGITS.exp().sum()
    expected = shares[:, [1, 5, 7]]
    expected = expected / expected.sum() if normalise else expected
    torch.testing.assert_close(weights, expected)


def test_a_router_with_groups_worked_by_hand() -> None:
    # Pairs of experts are groups: by the sums of their scores {2, 3}, {6, 7}, {0, 1}, {4, 5}. The
    # best expert, 1, is in none of the two best, until a bias lifts expert 0 and with it {0, 1}.
    scores, bias = LOGITS.sigmoid(), torch.zeros(8)
    assert scores.view(4, 2).sum(1).argsort(descending=True).tolist() == [1, 3, 0, 2]
    assert router(GROUPED, LOGITS, bias)[1].tolist() == [[2, 3, 7]]
    bias[0] = 0.5
    weights, chosen = router(replace(GROUPED, scaling=2.5), LOGITS, bias)
    assert chosen.tolist() == [[0, 1, 3]]
    expected = scores[:, [0, 1, 3]]  # without the bias
    torch.testing.assert_close(weights, 2.5 * expected / expected.sum())


def test_a_bias_that_weighs_too() -> None:
    bias = torch.tensor([0.0, 0, 0, 0, 0.9, 0, 0, 0])
    weights, chosen = router(replace(EXPERTS, bias="weights", normalise=False), LOGITS, bias)
    assert chosen.tolist() == [[1, 4, 5]]
    torch.testing.assert_close(weights, (LOGITS.softmax(-1) + bias)[:, [1, 4, 5]])


def test_sums_are_rounded_after_each_expert_or_once() -> None:
    outputs = torch.tensor([[[256.0], [1.0], [1.0]]]).bfloat16()  # 257 is none in bfloat16
    weights = torch.ones(1, 3)
    assert added_up(outputs, weights.bfloat16(), wide=False).item() == 256
    assert added_up(outputs, weights, wide=True).item() == 258


def test_the_router_of_a_narrow_model_is_wide() -> None:
    config = replace(EXPERTS, router_in_float32=True)
    torch.manual_seed(1)
    part = Router(config, 16).bfloat16().requires_grad_(False)
    x = tokens(64, torch.bfloat16)
    expected = F.linear(x.float(), part.weight.float()).softmax(-1)
    assert torch.equal(part.scores(x), expected)
    part.config = EXPERTS
    assert not torch.equal(part.scores(x), expected)
    assert part.scores(x).dtype == torch.float32


@pytest.mark.parametrize("architecture", MIXTURES)
def test_logits_equal_transformers_in_float64(architecture: str, tmp_path: Path) -> None:
    """Rounded as transformers rounds: LLaDA2 differs from GLM in the sum over experts alone."""
    model, reference = hosted(architecture, tmp_path, "float64"), oracle(architecture).double()
    network = model.network
    for part in network.modules():
        if isinstance(part, Router | MixtureOfExperts):
            part.config = replace(part.config, sum_in_float32=False)
    network.config = replace(network.config, logits_in_float32=False)
    ids = torch.randint(0, 48, (2, 24), generator=torch.Generator().manual_seed(1))
    everything = torch.zeros(2, 1, 24, 24, dtype=torch.float64)
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=everything).logits
        torch.testing.assert_close(network(ids), expected, rtol=0, atol=1e-10)
    assert expected.std() > 1


def test_every_mixture_is_among_these() -> None:
    rnd1 = {"RND1LM", "RND1Model"}
    assert set(MIXTURES) == {"LLaDAMoEModelLM", "LLaDA2MoeModelLM", "SDARMoeForCausalLM", *rnd1}


@pytest.mark.parametrize("architecture", MIXTURES)
def test_checkpoints_come_back_as_they_were(architecture: str, tmp_path: Path) -> None:
    model = hosted(architecture, tmp_path)
    save(model, tmp_path / "again", max_shard_size="20KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    theirs = load_file(tmp_path / "model.safetensors")
    ours: dict[str, Tensor] = {}
    for file in (tmp_path / "again").glob("*.safetensors"):
        ours |= load_file(file)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    again = load(tmp_path / "again")
    assert again.spec == model.spec
    ids = torch.arange(20)[None]
    assert torch.equal(again.network(ids), model.network(ids))
    fused = dllm.speed_up(again, "fused")
    torch.testing.assert_close(fused.network(ids), model.network(ids), rtol=0, atol=1e-4)
    save(fused, tmp_path / "fused")
    assert load_file(tmp_path / "fused" / "model.safetensors").keys() == theirs.keys()


def test_the_bias_of_the_choice_stays_in_float32(tmp_path: Path) -> None:
    model = hosted("LLaDA2MoeModelLM", tmp_path, "bfloat16")
    stored = load_file(tmp_path / "model.safetensors")
    part = model.network.blocks[1].feed_forward
    assert isinstance(part, MixtureOfExperts)
    assert part.router.bias is not None
    assert part.router.weight.dtype == torch.bfloat16
    assert torch.equal(part.router.bias, stored["model.layers.1.mlp.gate.expert_bias"])


@pytest.mark.parametrize("lost", ["mlp.experts.7.up_proj.weight", "mlp.gate.expert_bias"])
def test_a_tensor_of_one_expert_that_is_missing(lost: str, tmp_path: Path) -> None:
    hosted("LLaDA2MoeModelLM", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"model.layers.2.{lost}"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"1 tensors are missing: model.layers.2.{lost}"):
        load(tmp_path)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_pass_waits_for_nothing(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = hosted(architecture, tmp_path), torch.arange(20)[None]

    def waits(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the host waits for the device")

    for name in (*COUNTED, "nonzero", "__bool__", "__index__"):
        monkeypatch.setattr(Tensor, name, waits)
    for dtype in (torch.float32, torch.float64):
        model.network.to(dtype)(ids)


@pytest.mark.few(1)
@pytest.mark.parametrize("architecture", MIXTURES)
@pytest.mark.parametrize("cache", ["none", "own", "further"])
def test_flops_are_those_of_the_experts_in_use(
    architecture: str, cache: str, tmp_path: Path
) -> None:
    model = hosted(architecture, tmp_path)
    causal = model.spec.attention == "block_causal"
    serving = {"own": ("dual", "block_causal"), "further": ("dllm_cache", "sub_block:4")}
    cache = serving[cache][causal] if cache in serving else cache
    settings: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8, "cache": cache}
    with (
        GroupedFlops() as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        metrics = dllm.generate(model, [[3, 4, 5], [6] * 9], **settings).metrics
    assert metrics.flops == counter.get_total_flops() > 0


def test_prices_worked_by_hand() -> None:
    experts = ExpertsConfig(4, 2, intermediate_size=6, shared_size=8, num_dense_layers=1)
    config = NetworkConfig(7, 3, 5, 3, 4, 2, 2, 1e4, 1e-6, experts=experts)
    cost = network_cost(config, 2)
    # q 3x8, k and v 3x4, out 8x3; one layer with 3x5 thrice, two with a router of 4x3, two experts
    # of 3x6 thrice and the shared one of 3x8 thrice.
    attention, dense, mixture = 24 + 12 + 12 + 24, 45, 12 + 2 * 54 + 72
    assert cost.token_flops == 2 * (3 * attention + dense + 2 * mixture)
    assert cost.first_flops == 2 * (attention + dense)
    assert cost.tail_flops == 2 * (24 + mixture)
    assert idle_parameters(config) == 2 * 2 * 54
    assert idle_parameters(replace(config, experts=None)) == 0


# Of the cards of the checkpoints, but for the two dense ones, which are sums of their shapes.
PARAMETERS = {
    "LLaDA-8B": (8_015_581_184, 8_015_581_184),
    "Dream-7B": (7_615_616_512, 7_615_616_512),
    "LLaDA-MoE-7B-A1B": (7_356_880_896, 1.72e9),  # with the embedding, 1.40e9 without
    "LLaDA2.0-mini": (16_255_643_392, 1.4e9),
    "LLaDA2.0-flash": (102_889_705_216, 6.1e9),
    "SDAR-30B-A3B": (30_532_122_624, 3.3e9),
    "RND1-Base-0910": (30_532_122_624, 3.3e9),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_published_models(name: str) -> None:
    with torch.device("meta"):
        network = Transformer(SIZES[name].network)
    total, active = PARAMETERS[name]
    count = sum(weight.numel() for weight in network.parameters())
    assert count == total
    assert count - idle_parameters(SIZES[name].network) == pytest.approx(active, rel=0.1)


def test_doctor_says_how_many_parameters_a_token_meets() -> None:
    checkpoint = LocalCheckpoint(str(GOLDEN / "models" / "llada2_moe"))
    (found,) = architecture_of(checkpoint)
    idle = 2 * (16 - 4) * 3 * 64 * 32  # two layers, experts not chosen
    active = f"{checkpoint.num_parameters - idle:,} of them active in a token (4 of 16 experts)"
    assert f"{checkpoint.num_parameters:,} parameters, {active}" in found.text


WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "LLaDAMoEModelLM": [
        ({"num_experts_per_tok": 9}, "num_active=9 experts of a token are more than the 8"),
        ({"moe_layer_freq": [1, 0, 1]}, r"moe_layer_freq=\[1, 0, 1\]; supported: 3 ones"),
        ({"moe_layer_freq": [1]}, "moe_layer_freq"),
        ({"shared_expert_intermediate_size": 16}, "shared_expert_intermediate_size=16"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ({"qk_layernorm": False}, "qk_layernorm=False; supported: True"),
        ({"num_experts": None}, "has no 'num_experts'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"moe_router_enable_expert_bias": True}, "3 tensors are missing: .*mlp.expert_bias"),
    ],
    "LLaDA2MoeModelLM": [
        ({"n_group": 3}, "num_experts=16 does not make num_groups=3 equal groups"),
        ({"n_group": 16}, "num_groups=16 equal groups of at least two"),
        ({"topk_group": 5}, "num_active_groups=5 is more than num_groups=4"),
        ({"topk_group": 1, "num_experts_per_tok": 5}, "num_active=5 .* the 4 to choose from"),
        ({"first_k_dense_replace": 3}, "num_dense_layers=3 leaves no layer of num_layers=3"),
        ({"score_function": "softmax"}, "score_function='softmax'; supported: 'sigmoid'"),
        ({"norm_topk_prob": False}, "norm_topk_prob=False"),
        ({"use_qk_norm": False}, "use_qk_norm=False"),
        ({"partial_rotary_factor": None, "rope_parameters": None, "rope_theta": 1e4},
         "has no 'partial_rotary_factor'"),
        ({"rotary_dim": 4}, "rotary_dim=4 and .*=8.0, which state one fact"),
        ({"partial_rotary_factor": 0.3}, "partial_rotary_factor=0.5; supported: 0.3"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor=2.0; supported: a number up to 1"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor=0"),
        ({"block_length": 0}, "block_length=0"),
    ],
    "SDARMoeForCausalLM": [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2; supported: 1"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob='yes'; supported: true or false"),
        ({"architectures": ["SDARForCausalLM"]}, "none in SDARForCausalLM; SDARMoeForCausalLM has"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_refused_configurations(name: str, tmp_path: Path) -> None:
    hosted(name, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in WRONG[name]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)


@pytest.mark.parametrize("part", [0.3, 2 / 3])
def test_a_part_of_a_head_that_is_none(part: float, tmp_path: Path) -> None:
    hosted("LLaDA2MoeModelLM", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"partial_rotary_factor": part, "rope_parameters": None, "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="an even number of the 16 elements of a head"):
        load(tmp_path)


def test_the_block_of_a_file_that_names_none() -> None:
    family = dllm.models.families.FAMILIES["LLaDA2MoeModelLM"]
    config = json.loads((GOLDEN / "models" / "llada2_moe" / "config.json").read_text())
    assert family.read_block_length(config) == 32
    assert family.read_block_length({**config, "block_length": 16}) == 16


@pytest.mark.parametrize("architecture", MIXTURES)
def test_eight_bits_are_refused(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = hosted(architecture, tmp_path)
    with pytest.raises(ValueError, match=r"'int8' .* experts are slices of one tensor: .*% of the"):
        dllm.speed_up(model, "fused", "int8")
    assert model.network.config.fused_gate_up is False  # before anything was changed


WAYS: tuple[Way, ...] = ("fused", "packed", "compiled")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MIXTURES)
def test_ways_of_speeding_up_keep_the_tokens(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("packing needs MKL")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    model = hosted(architecture, tmp_path)
    cache = "block_causal" if model.spec.attention == "block_causal" else "dual"
    settings: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "cache": cache}
    prompts = [[3, 4, 5], [6] * 9]
    expected = dllm.generate(model, prompts, **settings).sequences
    quick = dllm.speed_up(load(tmp_path), *WAYS)
    assert dllm.generate(quick, prompts, **settings).sequences == expected
    assert isinstance(quick.runner, Compiled)
    assert quick.runner.failed is None
    # A step feeds a shifted model a column more than it asks logits of, as a refresh does.
    assert quick.runner.num_variants > (0 if model.spec.logit_shift else 1)
    kinds = 2 if architecture == "LLaDA2MoeModelLM" else 1  # its first layer has no experts
    assert len(quick.runner._layers) == kinds


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", pytest.param("block_causal", marks=pytest.mark.whole)])
def test_machine_code_keeps_the_tokens(cache: str, tmp_path: Path) -> None:
    model = hosted("LLaDA2MoeModelLM", tmp_path)
    settings: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "cache": cache}
    expected = dllm.generate(model, [[6] * 9], **settings).sequences  # one row: half the variants
    quick = dllm.speed_up(load(tmp_path), "compiled")
    assert dllm.generate(quick, [[6] * 9], **settings).sequences == expected
    assert isinstance(quick.runner, Compiled)
    assert quick.runner.failed is None


class Kept:
    """Keeps work as it is, in the place of a GPU's graphs."""

    def record(self, work: Any) -> Any:
        work()
        return work


@pytest.mark.parametrize("architecture", MIXTURES)
def test_captured_passes_keep_the_tokens(architecture: str, tmp_path: Path) -> None:
    model = hosted(architecture, tmp_path)
    cache = "block_causal" if model.spec.attention == "block_causal" else "dual"
    settings: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "cache": cache}
    prompts = [[3, 4, 5], [6] * 9]
    expected = dllm.generate(model, prompts, **settings).sequences
    captured = Captured(model.network, Kept())
    quick = replace(model, runner=captured)
    assert dllm.generate(quick, prompts, **settings).sequences == expected
    assert captured.num_captured > 0
