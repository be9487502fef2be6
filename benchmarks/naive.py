"""The textbook loop, as the field's scripts have it: what a speed-up is measured against.

It takes the weights of a network and repeats what the published scripts do around them: one prompt,
a softmax in float64 over the whole vocabulary, a Python loop over rows to commit, a waiting host in
every step; with `dual`, the K/V cache that keeps the keys outside the block as they were at its
start (arXiv 2505.22618), unrotated, so that every step rotates all of them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

import dllm
from dllm.models.layers import Attention, Block, SwiGLU
from dllm.models.transformer import Transformer

KeysValues = list[tuple[Tensor, Tensor]]


@dataclass
class Naive:
    """A full-attention network with its own forward pass and its own loop."""

    model: dllm.HostedModel
    forwards: int = 0
    tables: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def network(self) -> Transformer:
        """The network whose weights are used."""
        return self.model.network

    @torch.no_grad()
    def generate(self, prompt: list[int], new_tokens: int, block: int, *, dual: bool) -> list[int]:
        """Returns prompt and answer, one token a step by confidence."""
        mask = self.model.spec.mask_token_id
        canvas = torch.full((1, len(prompt) + new_tokens), mask, device=self.model.device)
        canvas[0, : len(prompt)] = torch.tensor(prompt, device=self.model.device)
        for start in range(len(prompt), len(prompt) + new_tokens, block):
            stop, cache = start + block, None
            for step in range(block):
                open_ = canvas == mask
                open_[:, stop:] = False
                if not dual:
                    logits, _ = self.forward(canvas)
                    self.commit(canvas, open_, logits, 0)
                elif step == 0:
                    logits, cache = self.forward(canvas)
                    self.commit(canvas, open_, logits, 0)
                else:
                    logits, cache = self.forward(canvas[:, start:stop], cache, start)
                    self.commit(canvas, open_[:, start:stop], logits, start)
        return list(canvas[0].tolist())

    def commit(self, canvas: Tensor, open_: Tensor, logits: Tensor, start: int) -> None:
        """Writes the most confident token of each row."""
        logits = logits.clone()
        logits[..., self.model.spec.mask_token_id] = -torch.inf
        token = logits.argmax(-1)
        probability = F.softmax(logits.to(torch.float64), dim=-1)
        sure = probability.gather(-1, token[..., None]).squeeze(-1)
        sure = torch.where(open_, sure, -torch.inf)
        chosen = torch.zeros_like(open_)
        for row in range(sure.shape[0]):
            _, place = torch.topk(sure[row], k=1)
            chosen[row, place] = True
        window = canvas[:, start : start + open_.shape[1]]
        window[chosen] = token[chosen]

    def forward(
        self, tokens: Tensor, cache: KeysValues | None = None, start: int = 0
    ) -> tuple[Tensor, KeysValues]:
        """Returns logits of all fed tokens, and the keys and values that were attended to."""
        self.forwards += 1
        x, kept = self.network.embedding(tokens), KeysValues()
        for number in range(self.network.config.num_layers):
            block = cast("Block", self.network.blocks[number])
            past = None if cache is None else cache[number]
            mixed, pair = self.attend(block.attention, block.attention_norm(x), past, start)
            kept.append(pair)
            x = x + mixed
            inner, normed = cast("SwiGLU", block.feed_forward), block.feed_forward_norm(x)
            x = x + inner.down(F.silu(inner.gate(normed)) * inner.up(normed))
        logits: Tensor = self.network.head(self.network.norm(x))
        return logits, kept

    def attend(
        self, attention: Attention, x: Tensor, past: tuple[Tensor, Tensor] | None, start: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns what attention mixes, and all keys, before rotation, and values."""
        q, k, v = (heads(linear(x), self.network.config.head_dim) for linear in _linears(attention))
        if past is not None:
            keys, values = past  # written in place, as the scripts do
            keys[:, :, start : start + k.shape[2]] = k
            values[:, :, start : start + v.shape[2]] = v
            k, v = keys, values
        cos, sin = self.rotation(k.shape[2])
        turned = rotate(q, cos[start : start + q.shape[2]], sin[start : start + q.shape[2]])
        repeats = q.shape[1] // k.shape[1]
        wide = [t.repeat_interleave(repeats, 1) for t in (rotate(k, cos, sin), v)]
        mixed = F.scaled_dot_product_attention(turned, wide[0], wide[1])
        return attention.out(mixed.transpose(1, 2).flatten(2)), (k, v)

    def rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns the tables of the first positions, (length, head_dim), made once."""
        if self.tables is None or self.tables[0].shape[0] < length:
            config = self.network.config
            powers = torch.arange(0, config.head_dim, 2).float() / config.head_dim
            angles = torch.outer(torch.arange(length).float(), 1 / config.rope_theta**powers)
            angles = torch.cat([angles, angles], -1).to(self.model.device)
            self.tables = (angles.cos(), angles.sin())
        return self.tables[0][:length], self.tables[1][:length]


def heads(flat: Tensor, width: int) -> Tensor:
    """Returns (B, H, Q, D) of a projection (B, Q, H * D)."""
    return flat.unflatten(-1, (-1, width)).transpose(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (B, H, Q, D) rotated in float32."""
    first, second = x.float().chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    return (x.float() * cos + crossed * sin).to(x.dtype)


def _linears(attention: Attention) -> list[torch.nn.Module]:
    return [attention.q, attention.k, attention.v]
