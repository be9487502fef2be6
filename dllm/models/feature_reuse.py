"""Runs a network whose layers compute some columns and reuse what they gave the others before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.models.attention import Attention, Fed, Memory, rows_of
from dllm.models.transformer import Block, Transformer
from dllm.state.candidates import rank
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


def partly_computed(network: Transformer, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
    """Returns logits (B, W, V) of a pass whose plan says what is reused (arXiv 2506.06295).

    The states of all columns are summed up again in each layer: only attention, feed-forward and
    their outputs are saved, so the store holds two states a column and layer besides K/V.
    """
    if len({keys.device for keys in store.keys}) > 1:
        raise ValueError(
            "cache 'dllm_cache' needs all layers on one device: load the model on one, or use "
            "another cache"
        )
    x = network.embedding(tokens)
    for layer, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        x = _Layer(network, block, layer, plan, store).run(x)
    return network.logits(network.norm(rows_of(x, plan.head)))


@dataclass(frozen=True)
class _Layer:
    network: Transformer
    block: Block
    layer: int
    plan: StepPlan
    store: KVStore

    def run(self, x: Tensor) -> Tensor:
        """Returns the layer's states (B, Q, hidden_size) from those before it."""
        plan, block = self.plan, self.block
        normed = block.attention_norm(x)
        at, real = self._computed(normed)
        rotation = self.network.rotation(plan.columns.gather(1, at))
        attend = plan.attend
        if attend is not None and attend.shape[1] > 1:
            attend = rows_of(attend, at)
        memory = Memory(self.store, self.layer, replace(plan, slots=self._slots(at, real)))
        mixed = block.attention(rows_of(normed, at), Fed(rotation, attend), memory)
        x = x + self._remembered(2 * self.layer, at, real, mixed)[:, : x.shape[1]]
        given = block.feed_forward(block.feed_forward_norm(rows_of(x, at)))
        return x + self._remembered(2 * self.layer + 1, at, real, given)[:, : x.shape[1]]

    def _computed(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the fed columns (B, n) int64 that are computed, and which of them count."""
        reuse, width = self.plan.reuse, normed.shape[1]
        assert reuse is not None
        # Shadows stand behind the canvas columns, and are never reused.
        behind = width - reuse.fresh.shape[1]
        fresh = F.pad(reuse.fresh, (0, behind), value=True)
        if self.layer == 0:
            return _packed(torch.ones_like(fresh), width)
        if reuse.num_compared:
            fresh = fresh | self._drifted(normed, F.pad(reuse.drifting, (0, behind)))
        return _packed(fresh, reuse.num_computed(width))

    def _drifted(self, normed: Tensor, drifting: Tensor) -> Tensor:
        """Returns the columns whose values changed most, (B, Q) bool, and stores all new values."""
        reuse, attention = self.plan.reuse, self.block.attention
        assert reuse is not None
        assert isinstance(attention, Attention)
        at, real = _packed(drifting, reuse.num_compared)
        slots = self._slots(at, real)
        values = attention.values(rows_of(normed, at))
        old, new = (
            F.normalize(v.flatten(2).to(torch.promote_types(v.dtype, torch.float32)), dim=-1)
            for v in (self._swapped(slots, values), values)
        )
        # Half the squared distance is 1 - cosine, without its cancellation.
        chosen = rank((old - new).square().sum(-1), real) < reuse.count[:, None]
        return torch.zeros_like(drifting).scatter(1, at, chosen & real)

    def _swapped(self, slots: Tensor, values: Tensor) -> Tensor:
        """Stores values (B, n, H, D) at slots (B, n); returns what was there."""
        held = self.store.values[self.layer]
        flat = self.store.flat(slots)
        old = held[flat].unflatten(0, slots.shape)
        held.index_copy_(0, flat, values.flatten(0, 1))
        return old

    def _remembered(self, place: int, at: Tensor, real: Tensor, states: Tensor) -> Tensor:
        """Keeps states (B, n, d) at columns (B, n) where real; returns all of a row, (B, C, d)."""
        shape, features = self.store.shape, self.store.features
        if place not in features:
            size = (shape.num_rows, shape.num_columns, states.shape[-1])
            features[place] = states.new_zeros(size)
        held = features[place][:: shape.num_rows // at.shape[0]]
        index = at[..., None].expand_as(states)
        held.scatter_(1, index, torch.where(real[..., None], states, held.gather(1, index)))
        return held

    def _slots(self, at: Tensor, real: Tensor) -> Tensor:
        assert self.plan.slots is not None
        scratch = at.shape[0] * self.store.shape.num_columns
        return torch.where(real, self.plan.slots.gather(1, at), scratch)


def _packed(chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Returns the chosen columns first, (B, most) int64, and which of them were chosen."""
    order = (~chosen).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    return order, chosen.gather(1, order)
