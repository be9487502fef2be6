"""The logits of the reference implementations on the golden models, plain and over a K/V store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dllm.cache.passes import masks_last
from dllm.models import HostedModel, load
from dllm.models.layers import Rotation
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support import GOLDEN

MODELS = GOLDEN / "models"
NAMES = ["llada_mha", "llada_gqa", "llada_eos", "dream_gqa"]

# The reference and `Transformer` normalise in float32 whatever the dtype of the weights.
TOLERANCE = {"float64": 1e-12, "float32": 2e-4}


@pytest.fixture(scope="module", params=TOLERANCE)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, dtype: str) -> HostedModel:
    return load(MODELS / request.param, dtype=dtype)


def recorded(model: HostedModel, case: int) -> dict[str, Tensor]:
    tensors = load_file(Path(model.name) / "ref_logits.safetensors")
    prefix = f"{case}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def feed(model: HostedModel, tokens: Tensor, columns: Tensor, store: KVStore | None) -> Tensor:
    """Returns the logits (Q, V) of the fed columns of one row, all of which are wanted."""
    plan = StepPlan(
        kind="step",
        positions=columns[None],
        logit_rows=torch.arange(len(columns))[None],
        num_keys=len(tokens),
        stored=None if store is None else columns[None],
    )
    return model.forward(tokens[columns][None], plan, store)[0]


def assert_near(given: Tensor, expected: Tensor, dtype: str) -> None:
    assert given.dtype == getattr(torch, dtype)
    assert expected.std() > 1  # a flat reference would agree with anything
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("case", range(3))
def test_logits_equal_the_reference(model: HostedModel, dtype: str, case: int) -> None:
    want = recorded(model, case)
    tokens = want["input_ids"]
    every = torch.arange(len(tokens))
    assert_near(feed(model, tokens, every, None), want["logits_f64"], dtype)
    assert_near(model.network(tokens[None])[0], want["logits_f64"], dtype)


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_cached_logits_equal_the_reference(
    model: HostedModel, dtype: str, case: int, kind: str
) -> None:
    want = recorded(model, case)
    tokens, changed = want["input_ids"], want["cached_input_ids"]
    start, block = want["meta"].tolist()
    store = model.new_store(1, len(tokens))
    feed(model, tokens, torch.arange(len(tokens)), store)
    fed = torch.arange(start, len(tokens) if kind == "prefix" else start + block)
    given = feed(model, changed, fed, store)
    assert_near(given, want[f"{kind}_logits_f64"], dtype)
    # The cache is an approximation, so this test can tell a store from a full pass.
    full = feed(model, changed, torch.arange(len(tokens)), None)
    assert (full[fed] - given).abs().max() > 1e-2


MIXTURES = ["llada_moe", "llada2_moe"]
# How far logits, which are 6 on average, may be apart: all of them, or in bfloat16 most of them. On
# CPUs of the kind that they were recorded on they are equal bit by bit; on others exp and rsqrt of
# float32, in which norms and softmax are computed whatever the dtype, are rounded otherwise, and so
# are products of bfloat16, up to which expert a token takes.
ROUNDED = {"f64": 5e-5, "f32": 2e-4, "bf16": 0.125}


def rounded_frequencies(network: Transformer, columns: Tensor) -> Rotation:
    """Returns RoPE tables of frequencies rounded to bfloat16.

    The bfloat16 recordings are of models that were cast as a whole, which rounds this table too;
    a model that is loaded in bfloat16 keeps it.
    """
    width = network.config.rotary_dim or network.config.head_dim
    steps = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies = (1.0 / network.config.rope_theta**steps).bfloat16().float()
    angles = columns[..., None].float() * frequencies
    cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
    return Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))


def in_blocks(count: int, block: int) -> Tensor:
    """Returns which keys the columns of a block-causal model see, (1, Q, K) bool."""
    blocks = torch.arange(count) // block
    return (blocks[:, None] >= blocks)[None]


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("narrow", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("name", MIXTURES)
def test_logits_of_mixtures_are_those_of_the_reference(
    name: str, narrow: str, case: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(MODELS / name, dtype={"f64": "float64", "f32": "float32"}.get(narrow, "bfloat16"))
    if narrow == "bf16":
        monkeypatch.setattr(Transformer, "rotation", rounded_frequencies)
    want = recorded(model, case)
    tokens, (_, block) = want["input_ids"], want["meta"].tolist()
    masks = {f"logits_{narrow}": in_blocks(len(tokens), block) if name == "llada2_moe" else None}
    if name == "llada2_moe" and narrow == "f64":
        masks["full_attention_logits_f64"] = None
    for key, mask in masks.items():
        columns = torch.arange(len(tokens))[None]
        plan = StepPlan("step", columns, columns, len(tokens), mask)
        given = model.forward(tokens[None], plan, None)[0]
        assert given.dtype == want[key].dtype
        assert want[key].std() > 1
        apart = (given.double() - want[key].double()).abs()
        assert (apart.median() if narrow == "bf16" else apart.max()) <= ROUNDED[narrow]


def test_recorded_frequencies_were_rounded() -> None:
    model = load(MODELS / "llada_moe", dtype="bfloat16")
    want = recorded(model, 0)
    given = model.network(want["input_ids"][None])[0]
    assert 0 < (given - want["logits_bf16"]).abs().mean() < 0.05 * want["logits_bf16"].std()


@pytest.mark.parametrize("case", range(3))
def test_masks_stand_behind_all_tokens_without_being_moved(dtype: str, case: int) -> None:
    """WeDLM was recorded with tokens first and masks last; here each column is at its place."""
    model = load(MODELS / "wedlm", dtype=dtype)
    want = recorded(model, case)
    positions = want["position_ids"]
    tokens = torch.empty_like(want["input_ids"]).index_copy(0, positions, want["input_ids"])
    masked = (tokens == model.spec.mask_token_id)[None]
    order = torch.where(masked[0], 1000, 0) + torch.arange(len(tokens))
    assert torch.equal(order.argsort(), positions), "the recording has another order"
    assert not torch.equal(positions, positions.sort().values), "it must move something"
    columns = torch.arange(len(tokens))[None]
    seen = masks_last(masked, columns, len(tokens))
    plan = StepPlan("step", columns, columns, len(tokens), attention_mask=seen)
    given = model.forward(tokens[None], plan, None)[0]
    assert_near(given[positions], want["logits_f64"], dtype)
    causal = replace(plan, attention_mask=seen.tril())
    plain = model.forward(tokens[None], causal, None)[0]
    assert (plain[positions] - given[positions]).abs().max() > 1e-2, "masks see to their right"
