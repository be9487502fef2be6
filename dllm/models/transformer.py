"""One pre-norm transformer, configured into LLaDA, Dream, iLLaDA, SDAR, Fast-dLLM v2."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.config import NetworkConfig
from dllm.plan import StepPlan
from dllm.store import KVStore


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


class SwiGLU(nn.Module):
    """The gated feed-forward layer down(silu(gate(x)) * up(x))."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
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


def feed_forward(config: NetworkConfig, layer: int) -> nn.Module:
    """Returns the feed-forward part of a layer; mixture-of-experts families plug in here."""
    del layer  # MoE families keep their first layers dense
    return SwiGLU(config)


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


def rows_of(x: Tensor, at: Tensor) -> Tensor:
    """Returns the rows `at` (B, w) int64 of x (B, Q, ...), (B, w, ...)."""
    index = at.view(*at.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


class Transformer(nn.Module):
    """The network of every hosted family; knows nothing of masks, blocks or schedulers."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_multiply_first)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: Tensor, plan: StepPlan | None = None, store: KVStore | None = None
    ) -> Tensor:
        """Returns logits (B, W, V) of the rows that `plan.head` names (B, Q, V without a plan).

        `tokens` (B, Q) int64 are the tokens of `plan.columns`. Without a plan they stand at
        columns 0..Q-1 and all see each other.
        """
        if plan is None:
            columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
            return self.logits(self.hidden(tokens, columns))
        return self.logits(self.hidden(tokens, plan.columns, plan.attend, plan, store))

    def hidden(
        self,
        tokens: Tensor,
        columns: Tensor,
        attend: Tensor | None = None,
        plan: StepPlan | None = None,
        store: KVStore | None = None,
    ) -> Tensor:
        """Returns the last layer's normed states (B, Q, hidden_size), or (B, w, hidden_size).

        Those of all fed columns, or with a plan of the w that `plan.head` names.
        """
        x, fed = self.embedding(tokens), Fed(self.rotation(columns), attend)
        if store is not None:
            store.maps.clear()
        for layer, block in enumerate(self.blocks):
            memory = None
            if store is not None and plan is not None and plan.slots is not None:
                memory = Memory(store, layer, plan)
            if plan is not None and plan.narrows and layer == len(self.blocks) - 1:
                fed = replace(fed, wanted=plan.head)
            x = block(x, fed, memory)
        if plan is not None and not plan.narrows:
            x = rows_of(x, plan.head.to(x.device))
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the head's logits (..., V) of states (..., hidden_size)."""
        logits = self.head(hidden)
        return logits.float() if self.config.logits_in_float32 else logits

    def rotation(self, columns: Tensor) -> Rotation:
        """Returns the RoPE tables of positions (B, Q), in float32.

        Computed from the configuration at each pass: a stored table would have to survive
        initialisation without memory, where frequencies silently become garbage.
        """
        width = self.config.rotary_dim or self.config.head_dim
        exponents = torch.arange(0, width, 2, device=columns.device, dtype=torch.float32) / width
        angles = columns[..., None].float() * (1.0 / self.config.rope_theta**exponents)
        cos, sin = angles.cos()[:, :, None], angles.sin()[:, :, None]
        return Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))
