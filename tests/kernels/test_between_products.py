"""The three kernels between a layer's products against the layer's own operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.models.config import NetworkConfig
from dllm.models.layers import Attention, Memory, RMSNorm, Rotation
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape
from tests.support.ulps import NARROW, assert_rounds_alike

pytest.importorskip("triton")

from dllm.kernels.gated_product import gated
from dllm.kernels.residual_norm import Norm, add_and_norm
from dllm.kernels.rotated_write import Heads, Slots, rotate_and_write

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the interpreter's numpy
    pytest.mark.few(12),
]


def drawn(*size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def norm_of(width: int, multiply_first: bool, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(width, 1e-6, multiply_first)
    norm.weight = torch.nn.Parameter(1 + drawn(width, seed=9, scale=0.3), requires_grad=False)
    return norm.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("multiply_first", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 7), (1, 5, 128), (3, 1, 1000), (1, 2, 5000)])
def test_a_sum_and_its_norm(size: Any, multiply_first: bool, dtype: torch.dtype) -> None:
    norm = norm_of(size[-1], multiply_first, dtype)
    x, branch = (drawn(*size, seed=s, scale=4).to(DEVICE, dtype) for s in (1, 2))
    numbers = Norm(norm.weight, norm.eps, multiply_first)
    summed, normed = add_and_norm(x, branch, numbers)
    assert torch.equal(summed, x + branch)
    assert_rounds_alike(normed, norm(x + branch), num_roundings=2)
    same, alone = add_and_norm(x, None, numbers)
    assert same is x
    assert_rounds_alike(alone, norm(x), num_roundings=2)


def test_roundings_of_a_norm_are_told_apart() -> None:
    """With one rounding less some numbers are others, in both orders."""
    x = drawn(1, 40, 256, seed=3).to(DEVICE, torch.bfloat16)
    found = {}
    for first in (False, True):
        norm = norm_of(256, first, torch.bfloat16)
        found[first] = add_and_norm(x, None, Norm(norm.weight, norm.eps, first))[1]
        assert (found[first] == norm(x)).float().mean() > 0.999
    assert (found[False] != found[True]).float().mean() > 0.05


def test_a_norm_of_rows_that_are_strided_or_none() -> None:
    norm = norm_of(64, False, torch.float32)
    numbers = Norm(norm.weight, norm.eps, False)
    wide = drawn(3, 8, 128).to(DEVICE)
    for x in (wide[:, ::2, 64:], wide.transpose(0, 1)[..., :64], wide[:, :0, :64]):
        assert_rounds_alike(add_and_norm(x, x, numbers)[1], norm(x + x))
    assert_rounds_alike(add_and_norm(wide[..., :64] * 0, None, numbers)[1], wide[..., :64] * 0)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 9), (1, 4, 1024), (2, 1, 1500), (2, 0, 8)])
def test_a_gated_product(size: Any, dtype: torch.dtype) -> None:
    both = drawn(*size[:-1], 2 * size[-1], scale=3).to(DEVICE, dtype)
    gate, up = both.chunk(2, -1)
    assert_rounds_alike(gated(gate, up), F.silu(gate) * up, num_roundings=2)
    strided = both.transpose(0, 1)[..., : size[-1]]
    assert_rounds_alike(gated(strided, gate.transpose(0, 1)), F.silu(strided) * strided, 2)
    apart = gate.repeat_interleave(2, -1)[..., ::2]
    assert_rounds_alike(gated(apart, up), F.silu(gate) * up, num_roundings=2)


def test_a_gate_that_is_shut_or_wide_open() -> None:
    gate = torch.tensor([[-200.0, -89.0, 0.0, 89.0, 200.0, torch.inf, torch.nan]], device=DEVICE)
    up = torch.ones_like(gate)
    torch.testing.assert_close(gated(gate, up), F.silu(gate), equal_nan=True)


CONFIG = NetworkConfig(
    vocab_size=16,
    hidden_size=24,
    intermediate_size=16,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_dim=12,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    fused_qkv=True,
)
CONFIGS = {
    "plain": CONFIG,
    "in float32": replace(CONFIG, rope_in_float32=True),
    "partial": replace(CONFIG, rotary_dim=8),
    "normed": replace(CONFIG, qk_norm=True),
    "normed, partial, in float32": replace(
        CONFIG, qk_norm=True, norm_multiply_first=True, rotary_dim=4, rope_in_float32=True
    ),
    "one query a key": replace(CONFIG, num_heads=2, head_dim=16, qk_norm=True),
}


def attention_of(config: NetworkConfig, dtype: torch.dtype) -> Attention:
    attention = Attention(config)
    for weight in attention.parameters():
        wide = drawn(*weight.shape, seed=weight.dim(), scale=0.3)
        weight.data = wide + 1.0 * (weight.dim() == 1)
    return attention.requires_grad_(False).to(DEVICE, dtype)


def heads_of(attention: Attention) -> Heads:
    config = attention.config
    return Heads(
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.rope_in_float32,
        config.rms_norm_eps,
        config.norm_multiply_first,
        (attention.q_norm.weight, attention.k_norm.weight) if config.qk_norm else None,
    )


def rotation_of(config: NetworkConfig, positions: Tensor) -> Rotation:
    with torch.device("meta"):
        network = Transformer(config)
    return network.rotation(positions)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_stored", [None, 5, 3, 0])
def test_rotation_and_write(num_stored: int | None, name: str, dtype: torch.dtype) -> None:
    """`num_stored` of the five fed columns have a slot; None: there is no store."""
    config = CONFIGS[name]
    attention, positions = attention_of(config, dtype), torch.tensor([[0, 3, 4, 9, 2]] * 2)
    x, rotation = drawn(2, 5, 24).to(DEVICE, dtype), rotation_of(config, positions.to(DEVICE))
    q, k, v = attention.project(x)
    q, k = attention.rotate(q, rotation), attention.rotate(k, rotation)
    tables = (rotation.cos, rotation.sin)
    stores = [store_of(config, dtype) for _ in range(2)]
    if num_stored is None:
        found = rotate_and_write(attention.qkv(x), heads_of(attention), tables, None)
        for ours, theirs in zip(found, (q, k, v), strict=True):
            assert_rounds_alike(ours, theirs, num_roundings=3)
        return
    columns = positions[:, :num_stored].to(DEVICE)
    plan = StepPlan("step", positions.to(DEVICE), positions[:, :0], 10, stored=columns)
    flat = stores[0].begin(columns)
    seen = Memory(stores[0], 0, plan, flat).write(k, v)
    slots = Slots(stores[1].keys[0], stores[1].values[0], stores[1].begin(columns))
    found = rotate_and_write(attention.qkv(x), heads_of(attention), tables, slots)
    assert_rounds_alike(found[0], q, num_roundings=3)
    for part in ("keys", "values"):
        expected, written = (getattr(store, part)[0][:-1] for store in stores)
        assert_rounds_alike(written, expected, num_roundings=3)
    for ours, theirs in zip(found[1:], seen, strict=True):
        assert_rounds_alike(ours[:, num_stored:], theirs[:, 10:], num_roundings=3)


def store_of(config: NetworkConfig, dtype: torch.dtype) -> KVStore:
    return KVStore(StoreShape(2, 10, config.num_kv_heads, config.head_dim), dtype, [DEVICE])


def test_columns_that_are_not_kept_go_to_scratch_alone() -> None:
    attention = attention_of(CONFIG, torch.float32)
    positions = torch.tensor([[1, 2, 9], [4, 5, 6]], device=DEVICE)
    store, rotation = store_of(CONFIG, torch.float32), rotation_of(CONFIG, positions)
    slots = Slots(
        store.keys[0],
        store.values[0],
        store.begin(torch.tensor([[1, 2, -1], [-1, -1, 6]], device=DEVICE)),
    )
    qkv = attention.qkv(drawn(2, 3, 24).to(DEVICE))
    rotate_and_write(qkv, heads_of(attention), (rotation.cos, rotation.sin), slots)
    written = (store.keys[0][:-1] != 0).any((1, 2)).nonzero().flatten().tolist()
    assert written == [1, 2, 16]


def test_no_tokens_are_rotated() -> None:
    empty = torch.empty(2, 0, 10 * 12, device=DEVICE)
    tables = (torch.empty(2, 0, 1, 12, device=DEVICE),) * 2
    heads = heads_of(attention_of(CONFIG, torch.float32))
    assert [t.shape[1] for t in rotate_and_write(empty, heads, tables, None)] == [0, 0, 0]
