"""What a layer is made of: norm, attention over fed columns and the K/V store, feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.config import ExpertsConfig, NetworkConfig
from dllm.models.experts import Experts, Router, added_up
from dllm.models.low_rank import LowRank
from dllm.state.plan import LayerPolicy, StepPlan
from dllm.state.store import KVStore


@dataclass(frozen=True)
class Rotation:
    """The RoPE tables of the fed positions."""

    cos: Tensor  # (B, Q, 1, R) float32, R = rotary_dim
    sin: Tensor  # (B, Q, 1, R) float32, the first half of R negated
    query: Tensor | None = None  # (B, Q, 1, 1) float32 that rotated queries are multiplied by

    def to(self, *args: Any, **kwargs: Any) -> Rotation:
        """Returns the tables moved as `Tensor.to` does."""
        query = None if self.query is None else self.query.to(*args, **kwargs)
        return Rotation(self.cos.to(*args, **kwargs), self.sin.to(*args, **kwargs), query)

    def of_columns(self, start: int, end: int) -> Rotation:
        """Returns the tables of the fed columns from `start` to `end`."""
        return Rotation(self.cos[:, start:end], self.sin[:, start:end])


@dataclass(frozen=True)
class Fed:
    """What a layer is told of the fed columns."""

    rotation: Rotation
    mask: Tensor | None = None  # (B, 1 or Q, K) bool keys that they see; None: all
    wanted: Tensor | None = None  # (B, w) int64 those that its output is of; None: all
    adapted: bool = False  # attention adds what it drafts with, where it has that

    def to(self, *args: Any, **kwargs: Any) -> Fed:
        """Returns the same moved as `Tensor.to` does; accelerate calls it between devices."""
        mask, wanted = (
            None if t is None else t.to(*args, **kwargs) for t in (self.mask, self.wanted)
        )
        return Fed(self.rotation.to(*args, **kwargs), mask, wanted, self.adapted)


@dataclass(frozen=True)
class Memory:
    """One layer's access to the K/V store during one pass."""

    store: KVStore
    layer: int
    plan: StepPlan
    slots: Tensor  # (B, q) int64 where the first q fed keys go

    @property
    def policy(self) -> LayerPolicy | None:
        return self.plan.policy

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores what was fed; returns all keys and values (B, K, Hkv, D) that it joins."""
        return self.store.write(self.layer, self.slots, keys, values, self.plan.num_keys)


class RMSNorm(nn.Module):
    """Root-mean-square norm with statistics in float32, as every family's own code has it."""

    def __init__(self, width: int, eps: float, multiply_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.multiply_first = multiply_first

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.multiply_first:
            return (self.weight.float() * normed).to(x.dtype)
        return self.weight * normed.to(x.dtype)


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
        self.draft: LowRank | None = None  # added to `out` in passes that draft

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

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys, before RoPE, and values (B, Q, Hkv, D) without queries."""
        if self.config.fused_qkv:
            flat = _last_outputs(self.qkv, x, 2 * self.kv_width).chunk(2, -1)
        else:
            flat = (self.k(x), self.v(x))
        k, v = (rearrange(t, "b q (h d) -> b q h d", d=self.config.head_dim) for t in flat)
        return (self.k_norm(k) if self.config.qk_norm else k), v

    def values(self, x: Tensor) -> Tensor:
        """Returns values (B, Q, Hkv, D) alone."""
        if not self.config.fused_qkv:
            flat = self.v(x)
        else:
            flat = _last_outputs(self.qkv, x, self.kv_width)
        return rearrange(flat, "b q (h d) -> b q h d", d=self.config.head_dim)

    def forward(self, x: Tensor, fed: Fed, memory: Memory | None = None) -> Tensor:
        q, k, v = self.project(x)
        q, k, mask = self.rotate(q, fed.rotation), self.rotate(k, fed.rotation), fed.mask
        if fed.rotation.query is not None:
            q = q * fed.rotation.query.to(q.dtype)
        policy = None if memory is None else memory.policy
        if memory is not None:
            k, v = memory.write(k, v)
            if policy is not None:
                mask = policy.visible(memory.store, memory.layer, q, k, mask)
        if fed.wanted is not None:
            q = rows_of(q, fed.wanted)
            if mask is not None and mask.shape[1] > 1:
                mask = rows_of(mask, fed.wanted)
        if memory is not None and policy is not None and policy.keeps_weights:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            mixed, weights = explicit_attention(q, k, v, None if mask is None else mask[:, None])
            memory.store.weights.append(memory.store.mean_over_heads(weights))
            mixed = mixed.transpose(1, 2)
        else:
            mixed = attend(q, k, v, mask)
        mixed = mixed.flatten(2)
        if fed.adapted and self.draft is not None:
            return self.out(mixed) + self.draft(mixed)
        return self.out(mixed)

    def rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Returns x (B, Q, H, D) with its first `rotary_dim` elements rotated by position."""
        dtype = torch.float32 if self.config.rope_in_float32 else x.dtype
        cos, sin = rotation.cos.to(dtype), rotation.sin.to(dtype)
        width = cos.shape[-1]
        given = x[..., :width].to(dtype)
        turned = (given * cos + given.roll(width // 2, -1) * sin).to(x.dtype)
        return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


class SwiGLU(nn.Module):
    """The gated feed-forward layer down(silu(gate(x)) * up(x))."""

    def __init__(self, config: NetworkConfig, inner: int | None = None) -> None:
        super().__init__()
        width, inner = config.hidden_size, inner or config.intermediate_size
        self.fused = config.fused_gate_up
        if self.fused:
            self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        else:
            self.gate = nn.Linear(width, inner, bias=False)
            self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        return self.down(F.silu(gate) * up)


class MixtureOfExperts(nn.Module):
    """The feed-forward layers of a token's experts, weighed, and one that all tokens share."""

    def __init__(self, config: NetworkConfig, experts: ExpertsConfig) -> None:
        super().__init__()
        self.config = experts
        self.router = Router(experts, config.hidden_size)
        self.experts = Experts(experts, config.hidden_size)
        self.shared = None if experts.shared_size is None else SwiGLU(config, experts.shared_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        weights, chosen = self.router(tokens)
        outputs = self.experts(tokens, chosen)
        mixed = added_up(outputs, weights, self.config.sum_in_float32).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)


def feed_forward(config: NetworkConfig, layer: int) -> nn.Module:
    """Returns the feed-forward part of a layer."""
    experts = config.experts_of(layer)
    if experts is None:
        return SwiGLU(config)
    return MixtureOfExperts(config, experts)


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, config: NetworkConfig, layer: int) -> None:
        super().__init__()
        args = (config.hidden_size, config.rms_norm_eps, config.norm_multiply_first)
        self.attention_norm = RMSNorm(*args)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(*args)
        self.feed_forward = feed_forward(config, layer)

    def forward(self, x: Tensor, fed: Fed, memory: Memory | None = None) -> Tensor:
        mixed = self.attention(self.attention_norm(x), fed, memory)
        x = mixed + (x if fed.wanted is None else rows_of(x, fed.wanted))
        return x + self.feed_forward(self.feed_forward_norm(x))

    def remember(self, x: Tensor, fed: Fed, memory: Memory) -> None:
        """Stores the keys and values of states (B, Q, hidden_size), and computes nothing else."""
        device = self.attention_norm.weight.device
        x, fed = x.to(device), fed.to(device)
        keys, values = self.attention.keys_and_values(self.attention_norm(x))
        memory.write(self.attention.rotate(keys, fed.rotation), values)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Returns attention (B, Q, H, D) of queries over keys and values (B, K, Hkv, D).

    `mask` (B, 1 or Q, K) bool are the keys that are seen; None: all.
    """
    groups = q.shape[2] // k.shape[2]
    if groups > 1 and q.is_cuda and mask is not None:
        return attend_in_groups(q, k, v, in_groups(mask, groups)[:, None])
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = None if mask is None else mask[:, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=groups > 1)
    return mixed.transpose(1, 2)


def attend_in_groups(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Returns the same where the heads that share keys are queries of one head.

    On CUDA no kernel takes a mask and shared keys together, but the one that spells attention out.
    `mask` (B, 1, 1 or Q times the group, K) is bool, or added to scores.
    """
    (_, num_queries, num_heads, _), num_shared = q.shape, k.shape[2]
    folded = q.unflatten(2, (num_shared, num_heads // num_shared)).transpose(1, 2).flatten(2, 3)
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
    return mixed.unflatten(2, (num_queries, -1)).transpose(1, 2).flatten(2, 3)


def in_groups(mask: Tensor, groups: int) -> Tensor:
    """Returns a mask (B, 1 or Q, K) for queries of which a group stands at each column."""
    return mask if mask.shape[1] == 1 else mask.repeat_interleave(groups, 1)


def _last_outputs(linear: Any, x: Tensor, count: int) -> Tensor:
    """Returns the last outputs (..., count) of joined projections."""
    if not isinstance(linear, nn.Linear):  # rounded weights, which are widened in parts
        outputs: Tensor = linear.outputs(x, linear.out_features - count)
        return outputs
    bias = None if linear.bias is None else linear.bias[-count:]
    return F.linear(x, linear.weight[-count:], bias)


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
