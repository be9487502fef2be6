"""Passes whose small operations are three Triton kernels between the matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import cast

import torch
from torch import Tensor, nn
from triton.errors import TritonError

from dllm.kernels.gated_product import gated
from dllm.kernels.residual_norm import Norm, add_and_norm
from dllm.kernels.rotated_write import Heads, Slots, rotate_and_write
from dllm.models.layers import (
    Attention,
    Block,
    RMSNorm,
    Rotation,
    SwiGLU,
    attend,
    attend_in_groups,
    in_groups,
    rows_of,
)
from dllm.models.model import is_plain
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape

_ALIGNED = 16  # numbers


class KernelPasses:
    """Runs the plain passes of a network with joined projections, in fewer kernels.

    Roundings are those of the network's own operations, one by one; what differs is the order in
    which a norm's squares are summed, and the last bit of a root or an exponential. Passes that do
    more than K/V (`is_plain`), and stores that are cut up, run as they are.
    """

    reuses_features = False

    def __init__(self, network: Transformer) -> None:
        self.network = network

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store."""
        return KVStore(shape, dtype, devices)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V)."""
        whole = store is None or type(store) is KVStore
        if not (whole and is_plain(plan, store)):
            logits: Tensor = self.network(tokens, plan, store)
            return logits
        return self.network.logits(self._hidden(tokens, plan, store))

    def _hidden(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns the last layer's normed states of the logits' rows, (B, w, hidden_size)."""
        network, narrows = self.network, plan.shape.narrows
        told = _Told(plan, network.rotation(plan.positions), store)
        x, branch = network.embedding(tokens), None
        for layer, module in enumerate(network.blocks):
            block = cast("Block", module)
            x, normed = add_and_norm(x, branch, _numbers(block.attention_norm))
            wanted = narrows and layer == len(network.blocks) - 1
            mixed = _attention(block.attention, normed, told.of_layer(layer, wanted))
            x = rows_of(x, plan.logit_rows) if wanted else x
            x, normed = add_and_norm(x, mixed, _numbers(block.feed_forward_norm))
            branch = _feed_forward(block.feed_forward, normed)
        assert branch is not None
        if not narrows:
            x, branch = rows_of(x, plan.logit_rows), rows_of(branch, plan.logit_rows)
        return add_and_norm(x, branch, _numbers(network.norm))[1]


class _Told:
    """What all layers are told of one pass."""

    _masks: dict[bool, Tensor]  # of all fed columns, and of those with logits

    def __init__(self, plan: StepPlan, rotation: Rotation, store: KVStore | None) -> None:
        self.plan, self.rotation, self._masks = plan, rotation, {}
        self.store = None if plan.stored is None else store
        self.flat = None
        if self.store is not None and plan.stored is not None:
            self.flat = self.store.begin(plan.stored)

    def mask(self, like: Tensor, groups: int, wanted: bool) -> Tensor | None:
        """Returns what is added to scores, (B, 1, 1 or Q times the group, K); None: nothing.

        Made once for all layers, where a bool mask would be turned into it in each.
        """
        mask = self.plan.attention_mask
        if mask is None:
            return None
        wanted = wanted and mask.shape[1] > 1
        if wanted not in self._masks:
            mask = rows_of(mask, self.plan.logit_rows) if wanted else mask
            self._masks[wanted] = _added(in_groups(mask, groups), like)
        return self._masks[wanted]

    def of_layer(self, layer: int, wanted: bool) -> _Layer:
        """Returns it for one layer; `wanted`: whose output is of the logits' rows alone."""
        slots = None
        if self.store is not None and self.flat is not None:
            slots = Slots(self.store.keys[layer], self.store.values[layer], self.flat)
        return _Layer(self, slots, wanted)


@dataclass(frozen=True)
class _Layer:
    """What one layer is told."""

    told: _Told
    slots: Slots | None
    wanted: bool

    def seen(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns all keys and values (B, K, Hkv, D), those without a slot behind the stored."""
        store, slots = self.told.store, self.slots
        if store is None or slots is None:
            return keys, values
        count, num_keys = slots.flat.shape[1], self.told.plan.num_keys
        found = []
        for stored, fresh in ((slots.keys, keys), (slots.values, values)):
            view = store.first_columns(stored, len(fresh), num_keys)
            behind = fresh[:, count:]
            found.append(view if count == fresh.shape[1] else torch.cat([view, behind], 1))
        return found[0], found[1]


def _attention(attention: Attention, normed: Tensor, layer: _Layer) -> Tensor:
    """Returns the attention's output (B, Q or w, hidden_size)."""
    plan, rotation = layer.told.plan, layer.told.rotation
    tables = (rotation.cos, rotation.sin)
    q, k, v = rotate_and_write(attention.qkv(normed), _heads(attention), tables, layer.slots)
    if rotation.query is not None:
        q = q * rotation.query.to(q.dtype)
    k, v = layer.seen(k, v)
    groups = attention.config.num_heads // attention.config.num_kv_heads
    mask = layer.told.mask(q, groups, layer.wanted)
    q = rows_of(q, plan.logit_rows) if layer.wanted else q
    mixed = attend(q, k, v, None) if mask is None else attend_in_groups(q, k, v, mask)
    out: Tensor = attention.out(mixed.flatten(2))
    return out


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Returns a bool mask as numbers that are added to scores, with a place for heads.

    Its rows are at distances that CUDA's kernels take as they are; they copy any others.
    """
    (num_rows, num_queries, num_keys), room = mask.shape, -(-mask.shape[-1] // _ALIGNED) * _ALIGNED
    added = like.new_zeros(num_rows, 1, num_queries, room)[..., :num_keys]
    return added.masked_fill_(~mask[:, None], -torch.inf)


def _feed_forward(part: nn.Module, normed: Tensor) -> Tensor:
    if isinstance(part, SwiGLU) and part.fused:
        gate, up = part.gate_up(normed).chunk(2, -1)
        out: Tensor = part.down(gated(gate, up))
        return out
    mixed: Tensor = part(normed)
    return mixed


def _numbers(norm: RMSNorm) -> Norm:
    return Norm(norm.weight, norm.eps, norm.multiply_first)


def _heads(attention: Attention) -> Heads:
    config, weights = attention.config, None
    if config.qk_norm:
        weights = (attention.q_norm.weight, attention.k_norm.weight)
    return Heads(
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.rope_in_float32,
        config.rms_norm_eps,
        config.norm_multiply_first,
        weights,
    )


@torch.inference_mode()
def fault(device: torch.device, dtype: torch.dtype) -> str:
    """Returns why the kernels cannot be made, "" where they can; each is tried on a few numbers."""
    x = torch.ones(1, 1, 48, dtype=dtype, device=device)
    table = torch.ones(1, 1, 1, 16, device=device)
    try:
        add_and_norm(x, x, Norm(x[0, 0], 1e-6, multiply_first=False))
        gated(x, x)
        rotate_and_write(x, Heads(1, 1, 16, in_float32=False), (table, table), None)
    except (RuntimeError, OSError, ImportError, SubprocessError, TritonError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
