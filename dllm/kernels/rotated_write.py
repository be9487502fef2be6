"""The Triton kernel between a layer's product and its attention: one program a head of a token.

Norms queries and keys, rotates them, and writes keys and values to their slots of the K/V store.
Plain PyTorch has the same in `models/layers.py`: `Attention.project` and `.rotate`, `Memory.write`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm.kernels.rounding import rounded

_WARP = 128  # elements of a head up to which one warp suffices


@dataclass(frozen=True)
class Heads:
    """How one product's outputs are heads, and what is done to them."""

    num_heads: int
    num_kv_heads: int
    width: int
    in_float32: bool  # q and k are rotated in float32 and rounded once
    eps: float = 0.0
    multiply_first: bool = False
    weights: tuple[Tensor, Tensor] | None = None  # (width,) norms of queries and keys; None: none


@dataclass(frozen=True)
class Slots:
    """Where one layer's keys and values are stored."""

    keys: Tensor  # (slots, num_kv_heads, width)
    values: Tensor
    flat: Tensor  # (B, q) int64 slots of the first q fed columns


@triton.jit
def _kernel(  # noqa: PLR0913, PLR0915 a kernel takes its tensors one by one, and calls are inlined
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    slots: tl.tensor,
    q_out: tl.tensor,
    k_out: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    num_fed: tl.tensor,
    num_stored: tl.tensor,
    eps: tl.tensor,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    width: tl.constexpr,
    rotary: tl.constexpr,
    norms: tl.constexpr,
    multiply_first: tl.constexpr,
    in_float32: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Writes one head of one token: a query, a key or a value."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    lane = tl.arange(0, block)
    inside = lane < width
    turns = lane < rotary
    dtype = q_out.dtype.element_ty
    start = qkv + (token * (num_heads + 2 * num_kv_heads) + head) * width
    column = token % num_fed
    slot = token
    if column < num_stored:
        slot = tl.load(slots + (token // num_fed) * num_stored + column)
    if head >= num_heads + num_kv_heads:
        if column < num_stored:
            own = (slot * num_kv_heads + head - num_heads - num_kv_heads) * width
            value = tl.load(start + lane, mask=inside, other=0.0)
            tl.store(values + own + lane, value, mask=inside)
    else:
        # The element half a turn away, which the rotation mixes in.
        partner = tl.where(turns, (lane + rotary // 2) % rotary, lane)
        x = tl.load(start + lane, mask=inside, other=0.0).to(tl.float32)
        other = tl.load(start + partner, mask=inside, other=0.0).to(tl.float32)
        if norms:
            scale = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
            weight = q_weight if head < num_heads else k_weight
            factor = tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
            across = tl.load(weight + partner, mask=inside, other=0.0).to(tl.float32)
            x, other = x * scale, other * scale
            if not multiply_first:
                x, other = rounded(x, dtype), rounded(other, dtype)
            x, other = factor * x, across * other
            x, other = rounded(x, dtype), rounded(other, dtype)
        c = tl.load(cos + token * rotary + lane, mask=turns, other=1.0)
        s = tl.load(sin + token * rotary + lane, mask=turns, other=0.0)
        if in_float32:
            turned = x * c + other * s
        else:
            c, s = rounded(c, dtype), rounded(s, dtype)
            turned = rounded(x * c, dtype) + rounded(other * s, dtype)
        result = rounded(tl.where(turns, turned, x), dtype).to(dtype)
        if head < num_heads:
            tl.store(q_out + (token * num_heads + head) * width + lane, result, mask=inside)
        elif column < num_stored:
            stored = keys + (slot * num_kv_heads + head - num_heads) * width
            tl.store(stored + lane, result, mask=inside)
        else:
            fresh = k_out + (token * num_kv_heads + head - num_heads) * width
            tl.store(fresh + lane, result, mask=inside)


def rotate_and_write(
    qkv: Tensor, heads: Heads, tables: tuple[Tensor, Tensor], slots: Slots | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rotated queries (B, Q, H, D), and keys and values (B, Q, Hkv, D) without a slot.

    `qkv` (B, Q, (H + 2 Hkv) D) are the outputs of one product, `tables` cosines and sines
    (B, Q, 1, R) float32. Keys and values of the first q columns, which have slots, stand there
    alone: what is returned for them is not to be read.
    """
    qkv = qkv.contiguous()
    batch, num_fed, _ = qkv.shape
    hkv, width = heads.num_kv_heads, heads.width
    q = qkv.new_empty(batch, num_fed, heads.num_heads, width)
    v = qkv[..., (heads.num_heads + hkv) * width :].unflatten(-1, (hkv, width))
    num_stored = 0 if slots is None else slots.flat.shape[1]
    k = torch.empty_like(v, memory_format=torch.contiguous_format)
    cos, sin = (table.contiguous() for table in tables)
    q_weight, k_weight = heads.weights or (qkv, qkv)
    # Without a store no slot is read, but a kernel is compiled for pointers of their types.
    flat = cos.new_empty(0, dtype=torch.int64) if slots is None else slots.flat.contiguous()
    if q.numel():
        _kernel[(batch * num_fed, heads.num_heads + 2 * hkv)](
            qkv,
            cos,
            sin,
            q_weight,
            k_weight,
            flat,
            q,
            k,
            qkv if slots is None else slots.keys,
            qkv if slots is None else slots.values,
            num_fed,
            num_stored,
            heads.eps,
            num_heads=heads.num_heads,
            num_kv_heads=hkv,
            width=width,
            rotary=cos.shape[-1],
            norms=heads.weights is not None,
            multiply_first=heads.multiply_first,
            in_float32=heads.in_float32,
            block=triton.next_power_of_2(width),
            num_warps=1 if width <= _WARP else 4,
            enable_fp_fusion=False,  # roundings are those of one operation after the other
        )
    return q, k, v
