"""The hosted transformer against transformers' own classes, and the laws of its K/V store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.models import HostedModel, ModelSpec, NetworkConfig
from dllm.models.families import FAMILIES, llada
from dllm.models.layers import Attention, Block, Fed, RMSNorm
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.oracles import MADE, ORACLES, VOCABULARY, hosted, oracle, own_config

ROWS, COLUMNS = 2, 24


def sample(seed: int = 1) -> Tensor:
    return torch.randint(
        0, VOCABULARY, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(seed)
    )


def visible(kind: str, block: int | None) -> Tensor:
    """Returns which keys each query sees, (1, Q, K) bool; `padded` hides the end of row 1."""
    if kind == "padded":
        lengths = torch.tensor([COLUMNS, COLUMNS - 7])
        return (torch.arange(COLUMNS) < lengths[:, None])[:, None].expand(-1, COLUMNS, -1)
    blocks = torch.arange(COLUMNS) // (block or COLUMNS)
    return (blocks[:, None] >= blocks)[None].expand(ROWS, -1, -1)


def plan_of(columns: Tensor, **options: Any) -> StepPlan:
    head = torch.arange(columns.shape[1]).expand_as(columns)
    return StepPlan("step", columns, logit_rows=head, **{"num_keys": COLUMNS, **options})


EVERY = torch.arange(COLUMNS).expand(ROWS, -1)


# LLaDA rotates in float32, Llama in the dtype of the weights. LLaDA2 adds experts up in float32,
# best first, and GLM in the dtype of the weights, by their numbers.
ROUNDED_OTHERWISE = (
    ("LLaDAModelLM", "bfloat16"),
    ("LLaDA2MoeModelLM", "bfloat16"),
    ("LLaDA2MoeModelLM", "float32"),
)


@pytest.mark.few(40)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", ["own", "padded"])
@pytest.mark.parametrize("architecture", ORACLES)
def test_logits_equal_transformers(
    architecture: str, mask: str, dtype: str, tmp_path: Path
) -> None:
    model, reference = hosted(architecture, tmp_path, dtype), oracle(architecture)
    for weight in reference.parameters():  # not .to(): it would round the rotary frequencies too
        weight.data = weight.data.to(getattr(torch, dtype))
    attend = visible(mask, model.spec.block_length)
    lowest = torch.finfo(reference.dtype).min
    additive = torch.zeros(attend.shape, dtype=reference.dtype).masked_fill(~attend, lowest)
    expected = reference(input_ids=sample(), attention_mask=additive[:, None]).logits
    given = model.forward(sample(), plan_of(EVERY, attention_mask=attend), None)
    wide = model.network.config.logits_in_float32
    assert given.dtype == (torch.float32 if wide else reference.dtype)
    if (architecture, dtype) in ROUNDED_OTHERWISE:
        noise = {"float32": 1e-6, "bfloat16": 0.05}[dtype]
        assert not torch.equal(given, expected)
        assert (given - expected).abs().mean() < noise * expected.std()
        return
    assert torch.equal(given, expected)
    if mask == "own" and model.spec.attention == "full":
        assert torch.equal(model.network(sample()), expected)


def test_every_family_has_an_oracle() -> None:
    """Or recorded logits, where transformers has no such class (`tests/cache/test_encoder.py`)."""
    assert {*ORACLES, *MADE} == set(FAMILIES)


def test_specs_of_the_families(tmp_path: Path) -> None:
    specs = {}
    for architecture in ORACLES:
        folder = tmp_path / architecture
        folder.mkdir()
        specs[architecture] = hosted(architecture, folder).spec
    plain = ModelSpec(VOCABULARY, 64, 48, (49,), 49)
    assert specs["LLaDAModelLM"] == specs["ILLaDAForCausalLM"] == plain
    a2d = ("A2DQwen3LMHeadModel", "A2DQwen2LMHeadModel", "A2DLlamaLMHeadModel")
    assert [specs[name] for name in a2d] == [plain] * 3
    assert specs["DreamModel"] == specs["DimpleModel"] == replace(plain, logit_shift=1)
    blocks = replace(plain, attention="block_causal", block_length=4)
    assert specs["SDARForCausalLM"] == blocks
    last = replace(plain, attention="masks_last", block_length=16)
    assert specs["WeDLMForCausalLM"] == last
    assert specs["Fast_dLLM_QwenForCausalLM"] == replace(blocks, logit_shift=1, block_length=8)
    for name in ("StableDiffcoderForCausalLM", "SeedDiffcoderForCausalLM"):
        assert specs[name] == blocks
    for name in ("RND1LM", "RND1Model"):
        assert specs[name] == replace(plain, logit_shift=1)
    context = replace(plain, attention="causal_context", block_length=8)
    for name in ("NemotronLabsDiffusionModel", "MinistralDiffEncoderModel", "DiffEncoderModel"):
        assert specs[name] == context
    assert specs["LLaDAMoEModelLM"] == plain
    assert specs["SDARMoeForCausalLM"] == blocks
    assert specs["LLaDA2MoeModelLM"] == replace(blocks, block_length=8)


def test_sdar_multiplies_its_norms_in_float32_unless_told_otherwise() -> None:
    config = own_config("SDARForCausalLM")
    read = FAMILIES["SDARForCausalLM"].read_network
    assert read(config).norm_multiply_first is False
    del config["norm_multiply_first"]
    assert read(config).norm_multiply_first is True


def test_norm_roundings_differ_in_bfloat16_only() -> None:
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    norms = [RMSNorm(32, 1e-6, multiply_first) for multiply_first in (False, True)]
    for norm in norms:
        norm.weight.data = torch.linspace(0.3, 2.0, 32)
    assert torch.equal(norms[0](x), norms[1](x))
    low = [norm.bfloat16()(x.bfloat16()) for norm in norms]
    assert not torch.equal(low[0], low[1])
    wide = x.bfloat16().float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    exact = norms[1].weight.float() * (wide * scale)
    assert torch.equal(low[1], exact.bfloat16())


NETWORK = NetworkConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
)


def network(seed: int = 0, **switches: Any) -> Transformer:
    torch.manual_seed(seed)
    built = Transformer(replace(NETWORK, **switches)).eval().requires_grad_(False)
    for name, weight in built.named_parameters():
        if "norm" in name:
            weight.copy_(1 + 0.3 * torch.randn(weight.shape))
        else:
            weight.copy_(torch.randn(weight.shape) * 2.0 * weight.shape[-1] ** -0.5)
    return built


def attention(model: Transformer, layer: int = 0) -> Attention:
    return cast("Block", model.blocks[layer]).attention


def copy_weights(source: Transformer, target: Transformer, changed: Mapping[str, Tensor]) -> None:
    target.load_state_dict({**source.state_dict(), **changed}, strict=False)


def test_fused_qkv_equals_separate_projections() -> None:
    plain, fused = network(qkv_bias=True), network(1, qkv_bias=True, fused_qkv=True)
    joined = {}
    for layer in range(NETWORK.num_layers):
        parts = [getattr(attention(plain, layer), name) for name in ("q", "k", "v")]
        for kind in ("weight", "bias"):
            name = f"blocks.{layer}.attention.qkv.{kind}"
            joined[name] = torch.cat([getattr(part, kind) for part in parts])
    copy_weights(plain, fused, joined)
    torch.testing.assert_close(fused(sample()), plain(sample()), rtol=0, atol=1e-5)


def plain_attention(model: Transformer, x: Tensor) -> Tensor:
    """Returns the first layer's attention of one row x (Q, width), written head by head."""
    config, part = model.config, attention(model)
    width = config.rotary_dim or config.head_dim
    frequencies = config.rope_theta ** (-torch.arange(0, width, 2) / width)
    mixed = []
    for head in range(config.num_heads):
        group = head // (config.num_heads // config.num_kv_heads)
        q, k, v = (
            F.linear(x, projection.weight.unflatten(0, (-1, config.head_dim))[index])
            for projection, index in ((part.q, head), (part.k, group), (part.v, group))
        )
        if config.qk_norm:
            q, k = (
                t / (t.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * norm.weight
                for t, norm in ((q, part.q_norm), (k, part.k_norm))
            )
        for t in (q, k):
            for position in range(len(x)):
                for index, frequency in enumerate(frequencies.tolist()):
                    angle = torch.tensor(position * frequency)
                    first, second = t[position, index].clone(), t[position, index + width // 2]
                    other = second.clone()
                    t[position, index] = first * angle.cos() - other * angle.sin()
                    t[position, index + width // 2] = other * angle.cos() + first * angle.sin()
        scores = q @ k.T / config.head_dim**0.5
        mixed.append(scores.softmax(-1) @ v)
    return F.linear(torch.cat(mixed, -1), part.out.weight)


@pytest.mark.parametrize("switches", [{}, {"rotary_dim": 4}, {"qk_norm": True}], ids=str)
def test_attention_equals_the_plain_computation(switches: dict[str, Any]) -> None:
    model = network(**switches)
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    rotation = model.rotation(torch.arange(6)[None])
    given = attention(model)(x[None], Fed(rotation))[0]
    torch.testing.assert_close(given, plain_attention(model, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", ["all", "one mask", "a mask a query"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_last_layer_runs_for_the_rows_of_the_head_alone(count: int, masked: str) -> None:
    model, generator = network(), torch.Generator().manual_seed(count)
    tokens = torch.randint(0, 50, (2, 8), generator=generator)
    columns, head = torch.arange(8).expand(2, 8), torch.tensor([[5, 0, 7, 1, 2, 3, 4, 6]] * 2)
    queries = {"all": 0, "one mask": 1, "a mask a query": 8}[masked]
    attend = torch.rand(2, queries, 8, generator=generator) < 0.7 if queries else None
    if attend is not None:
        attend[..., 0] = True  # no query without a key
    seen = [0]
    last = model.blocks[-1]
    assert isinstance(last, Block)
    last.feed_forward.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[1]))
    plan = StepPlan("step", columns, head[:, :count], 8, attend)
    everything = model(tokens, replace(plan, logit_rows=columns))
    at = head[:, :count, None].expand(-1, -1, everything.shape[-1])
    torch.testing.assert_close(model(tokens, plan), everything.gather(1, at))
    assert seen == [0, 8, count]


def test_rope_in_float32_matters_in_bfloat16_only() -> None:
    plain, wide = network(), network(rope_in_float32=True)
    assert torch.equal(plain(sample()), wide(sample()))
    assert not torch.equal(plain.bfloat16()(sample()), wide.bfloat16()(sample()))


def test_logits_in_float32_are_cast_after_the_head() -> None:
    plain, wide = network().bfloat16(), network(logits_in_float32=True).bfloat16()
    assert wide(sample()).dtype == torch.float32
    assert torch.equal(wide(sample()), plain(sample()).float())


def test_model_depends_on_order_and_context() -> None:
    model, tokens = network(), sample()
    assert (model(tokens) - model(tokens.flip(1)).flip(1)).abs().max() > 0.1
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    assert (model(tokens)[:, 0] - model(changed)[:, 0]).abs().max() > 0.01


def test_rows_do_not_affect_one_another() -> None:
    model, tokens = network(), sample()
    for row in range(ROWS):
        alone = model(tokens[row : row + 1])[0]
        torch.testing.assert_close(model(tokens)[row], alone, rtol=0, atol=1e-5)


def test_head_names_the_wanted_rows() -> None:
    model, head = network(), torch.tensor([[5, 0, 5], [23, 7, 1]])
    plan = replace(plan_of(EVERY), logit_rows=head)
    expected = model(sample())[torch.arange(ROWS)[:, None], head]
    torch.testing.assert_close(model(sample(), plan), expected, rtol=0, atol=1e-5)


def random_store(model: Transformer, seed: int = 5) -> KVStore:
    """Returns a store full of large finite values, as stale as can be."""
    config = model.config
    spec = ModelSpec(VOCABULARY, 64, 48, (49,), 49)
    store = HostedModel("test", model, spec).new_store(ROWS, COLUMNS)
    assert len(store.keys) == config.num_layers
    source = torch.Generator().manual_seed(seed)
    for held in (*store.keys, *store.values):
        held.copy_(torch.randn(held.shape, generator=source) * 30)
    return store


def filled_store(model: Transformer, tokens: Tensor) -> KVStore:
    store = random_store(model)
    model(tokens, plan_of(EVERY, stored=EVERY), store)
    return store


def feed(model: Transformer, columns: Tensor, store: KVStore, **options: Any) -> Tensor:
    plan = plan_of(columns, **{"stored": columns, **options})
    logits: Tensor = model(sample().gather(1, columns), plan, store)
    return logits


def test_full_refresh_reads_nothing_stale() -> None:
    model = network(qk_norm=True)
    store = random_store(model)
    torch.testing.assert_close(feed(model, EVERY, store), model(sample()), rtol=0, atol=1e-5)


PART = torch.tensor([[3, 4, 5, 9], [20, 1, 23, 0]])  # other columns in each row, out of order


def test_partial_pass_over_a_fresh_store_equals_the_full_pass() -> None:
    model = network(qk_norm=True)
    given = feed(model, PART, filled_store(model, sample()))
    expected = model(sample()).gather(1, PART[..., None].expand(-1, -1, VOCABULARY))
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_partial_pass_over_a_stale_store_does_not() -> None:
    model = network()
    given = feed(model, PART, filled_store(model, sample(2)))
    expected = model(sample()).gather(1, PART[..., None].expand(-1, -1, VOCABULARY))
    assert (given - expected).abs().max() > 0.1


def test_a_pass_writes_its_slots_only() -> None:
    model = network()
    store = random_store(model)
    before = [held.clone() for held in (*store.keys, *store.values)]
    stored = PART.clone()
    stored[0, 1] = stored[1, 2] = -1  # these two are fed but not kept
    feed(model, PART, store, stored=stored)
    for held, old in zip((*store.keys, *store.values), before, strict=True):
        changed = (held != old).flatten(1).any(1).nonzero().flatten()
        assert changed.tolist() == sorted(set(store.slots(stored).flatten().tolist()))


def test_a_pass_attends_to_what_it_may_only() -> None:
    model = network()
    num_keys = COLUMNS - 4
    part = PART.clamp(max=num_keys - 1)
    attend = torch.ones(ROWS, 1, num_keys, dtype=torch.bool)
    attend[0, 0, 12] = False

    def logits(row: int, column: int) -> Tensor:
        store = filled_store(model, sample())
        slot = row * COLUMNS + column
        for held in (*store.keys, *store.values):
            held[slot] += 1000
        return feed(model, part, store, num_keys=num_keys, attention_mask=attend)

    expected = logits(0, COLUMNS - 1)  # beyond num_keys
    assert torch.equal(logits(1, num_keys), expected)
    assert torch.equal(logits(0, 12), expected)  # masked
    assert torch.equal(logits(0, 5), expected)  # fed: overwritten before it is read
    for row, column in ((1, 12), (0, 11)):
        given = logits(row, column)
        assert (given[row] - expected[row]).abs().max() > 0.1
        assert torch.equal(given[1 - row], expected[1 - row])


def test_order_of_the_fed_columns_does_not_matter() -> None:
    model, order = network(), torch.tensor([2, 0, 3, 1])
    plain = feed(model, PART, filled_store(model, sample()))
    moved = feed(model, PART[:, order], filled_store(model, sample()))
    torch.testing.assert_close(moved, plain[:, order], rtol=0, atol=1e-5)


def test_store_starts_at_zero_in_the_dtype_of_the_weights() -> None:
    spec = ModelSpec(VOCABULARY, 64, 48, (49,), 49)
    store = HostedModel("test", network().bfloat16(), spec).new_store(ROWS, COLUMNS)
    assert all(held.dtype == torch.bfloat16 and not held.any() for held in store.keys)
    assert store.keys[0].shape == (ROWS * COLUMNS + 1, 2, 8)


def test_llada_names_the_head_and_the_down_projection_apart() -> None:
    names = llada.NAMES
    assert names.of("head.weight") == "model.transformer.ff_out.weight"
    down = names.of("blocks.11.feed_forward.down.weight")
    assert down == "model.transformer.blocks.11.ff_out.weight"


def test_a_spec_refuses_a_token_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="mask_token_id=50 is outside the vocabulary of 50"):
        ModelSpec(VOCABULARY, 64, 50, (49,), 49)
