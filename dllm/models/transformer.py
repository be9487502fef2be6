"""One pre-norm transformer, configured into LLaDA, Dream, iLLaDA, SDAR, Fast-dLLM v2."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.attention import Attention, Fed, Memory, Rotation, rows_of
from dllm.models.config import NetworkConfig
from dllm.models.norm import RMSNorm
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


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
