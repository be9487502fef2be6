"""Attention over the fed columns and what the K/V store holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.config import NetworkConfig
from dllm.models.norm import RMSNorm
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


@dataclass(frozen=True)
class Rotation:
    """The RoPE tables of the fed positions."""

    cos: Tensor  # (B, Q, 1, R) float32, R = rotary_dim
    sin: Tensor  # (B, Q, 1, R) float32, the first half of R negated

    def to(self, *args: Any, **kwargs: Any) -> Rotation:
        """Returns the tables moved as `Tensor.to` does."""
        return Rotation(self.cos.to(*args, **kwargs), self.sin.to(*args, **kwargs))


@dataclass(frozen=True)
class Fed:
    """What a layer is told of the fed columns."""

    rotation: Rotation
    attend: Tensor | None = None  # (B, 1 or Q, K) bool keys that they see; None: all
    wanted: Tensor | None = None  # (B, w) int64 those that its output is of; None: all

    def to(self, *args: Any, **kwargs: Any) -> Fed:
        """Returns the same moved as `Tensor.to` does; accelerate calls it between devices."""
        moved = (None if t is None else t.to(*args, **kwargs) for t in (self.attend, self.wanted))
        return Fed(self.rotation.to(*args, **kwargs), *moved)


@dataclass(frozen=True)
class Memory:
    """One layer's access to the K/V store during one pass."""

    store: KVStore
    layer: int
    plan: StepPlan

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores what was fed; returns all keys and values (B, K, Hkv, D) that it joins."""
        assert self.plan.slots is not None
        return self.store.write(self.layer, self.plan.slots, keys, values, self.plan.num_keys)

    def seen(self, queries: Tensor, keys: Tensor, attend: Tensor | None) -> Tensor | None:
        """Returns which keys the layer sees, (B, 1 or Q, K) bool, after it chose anew if asked."""
        if self.plan.retain is not None:
            self.store.keep(self.layer, self.plan.retain.choose(queries, keys))
        if not self.plan.sparse:
            return attend
        kept = self.store.seen(self.layer, *keys.shape[:2])[:, None]
        return kept if attend is None else attend & kept


class Attention(nn.Module):
    """Grouped-query attention that writes its keys and values before it reads."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.q_width = config.num_heads * config.head_dim
        self.kv_width = config.num_kv_heads * config.head_dim
        width, bias = config.hidden_size, config.qkv_bias
        if config.fused_qkv:
            self.qkv = nn.Linear(width, self.q_width + 2 * self.kv_width, bias=bias)
        else:
            self.q = nn.Linear(width, self.q_width, bias=bias)
            self.k = nn.Linear(width, self.kv_width, bias=bias)
            self.v = nn.Linear(width, self.kv_width, bias=bias)
        if config.qk_norm:
            args = (config.head_dim, config.rms_norm_eps, config.norm_multiply_first)
            self.q_norm, self.k_norm = RMSNorm(*args), RMSNorm(*args)
        self.out = nn.Linear(self.q_width, width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries (B, Q, H, D), keys and values (B, Q, Hkv, D) before RoPE."""
        if self.config.fused_qkv:
            flat = self.qkv(x).split([self.q_width, self.kv_width, self.kv_width], dim=-1)
        else:
            flat = (self.q(x), self.k(x), self.v(x))
        q, k, v = (rearrange(t, "b q (h d) -> b q h d", d=self.config.head_dim) for t in flat)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def values(self, x: Tensor) -> Tensor:
        """Returns values (B, Q, Hkv, D) alone."""
        if not self.config.fused_qkv:
            flat = self.v(x)
        else:
            bias = None if self.qkv.bias is None else self.qkv.bias[-self.kv_width :]
            flat = F.linear(x, self.qkv.weight[-self.kv_width :], bias)
        return rearrange(flat, "b q (h d) -> b q h d", d=self.config.head_dim)

    def forward(self, x: Tensor, fed: Fed, memory: Memory | None = None) -> Tensor:
        q, k, v = self.project(x)
        q, k, attend = self.rotate(q, fed.rotation), self.rotate(k, fed.rotation), fed.attend
        if memory is not None:
            k, v = memory.write(k, v)
            attend = memory.seen(q, k, attend)
        if fed.wanted is not None:
            q = rows_of(q, fed.wanted)
            if attend is not None and attend.shape[1] > 1:
                attend = rows_of(attend, fed.wanted)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        mask = None if attend is None else attend[:, None]
        if memory is not None and memory.plan.maps:
            mixed, weights = explicit_attention(q, k, v, mask)
            memory.store.maps.append(weights)
        else:
            shared = self.config.num_kv_heads != self.config.num_heads
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Returns x (B, Q, H, D) with its first `rotary_dim` elements rotated by position."""
        dtype = torch.float32 if self.config.rope_in_float32 else x.dtype
        cos, sin = rotation.cos.to(dtype), rotation.sin.to(dtype)
        width = cos.shape[-1]
        given = x[..., :width].to(dtype)
        turned = (given * cos + given.roll(width // 2, -1) * sin).to(x.dtype)
        return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns attention (B, H, Q, D), and its weights (B, Q, K), mean over heads."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(q.dtype) @ v, weights.mean(1)


def rows_of(x: Tensor, at: Tensor) -> Tensor:
    """Returns the rows `at` (B, w) int64 of x (B, Q, ...), (B, w, ...)."""
    index = at.view(*at.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))
