"""Layers compiled once: fewer, larger kernels between the matrix products."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm.models.layers import Block, Fed, rows_of
from dllm.models.model import is_plain
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _LayerMemory:
    """`Memory` with the layer's own tensors, so that one compiled layer serves all of them.

    With the number of the layer in their hands, compilers make a variant of each.
    """

    keys: Tensor  # (slots, H, D)
    values: Tensor
    flat: Tensor  # (B * q,) int64
    extent: tuple[int, int, int, int]  # rows and columns of the store, its rows for one fed, K
    policy: ClassVar[None] = None  # of a plain pass

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores what was fed; returns all keys and values (B, K, Hkv, D) that it joins."""
        return self._write(self.keys, keys), self._write(self.values, values)

    def _write(self, memory: Tensor, fed: Tensor) -> Tensor:
        rows, columns, stride, num_keys = self.extent
        stored = self.flat.shape[0] // fed.shape[0]
        memory.index_copy_(0, self.flat, fed[:, :stored].flatten(0, 1))
        view = memory[:-1].unflatten(0, (rows, columns))[::stride, :num_keys]
        return view if stored == fed.shape[1] else torch.cat([view, fed[:, stored:]], 1)


def _layer(block: Block, x: Tensor, fed: Fed, memory: Any) -> Tensor:
    out: Tensor = block(x, fed, memory)
    return out


class Compiled:
    """Runs a network's passes with compiled layers; one compilation serves all layers and sizes.

    Sizes are dynamic, so only what is there at all makes a variant: one row or several, a mask or
    none, stored keys or none. After the first `most` variants others run as they are, and so does
    everything after a compilation has failed.
    """

    reuses_features = False

    def __init__(self, network: Transformer, most: int = 8) -> None:
        if most < 1:
            raise ValueError(f"most={most} compiled variants must be at least 1")
        self.network, self.most = network, most
        self.failed: str | None = None  # why nothing is compiled any more
        self._variants: set[tuple[object, ...]] = set()
        # By the kind of their feed-forward part, each with one of its own for the last layer.
        kinds = {_kind(block) for block in network.blocks}
        self._layers = {kind: _compiled() for kind in kinds}
        self._last = _compiled()

    @property
    def num_variants(self) -> int:
        """Number of compiled variants."""
        return len(self._variants)

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store."""
        return KVStore(shape, dtype, devices)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V)."""
        variant = _variant(tokens, plan, store)
        new = variant not in self._variants
        full = new and len(self._variants) >= self.most
        if self.failed is not None or full or not is_plain(plan, store):
            return self._eager(tokens, plan, store)
        if not new:
            return self._run(tokens, plan, store)
        try:
            logits = self._run(tokens, plan, store)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, ImportError) as error:
            self._give_up(error)
            return self._eager(tokens, plan, store)
        self._variants.add(variant)
        return logits

    def _run(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        network = self.network
        x, fed = (
            network.embedding(tokens),
            Fed(network.rotation(plan.positions), plan.attention_mask),
        )
        *memories, memory = self._memories(plan, store)
        for block, own in zip(network.blocks, memories, strict=False):
            x = self._layers[_kind(block)](block, x, fed, own)
        last = network.blocks[-1]
        if plan.shape.narrows:
            x = self._last(last, x, replace(fed, wanted=plan.logit_rows), memory)
        else:
            x = rows_of(self._layers[_kind(last)](last, x, fed, memory), plan.logit_rows)
        return network.logits(network.norm(x))

    def _memories(self, plan: StepPlan, store: KVStore | None) -> Iterator[_LayerMemory | None]:
        if store is None or plan.stored is None:
            yield from repeat(None, len(self.network.blocks))
            return
        rows, columns = store.shape.num_rows, store.shape.num_columns
        extent = (rows, columns, rows // plan.positions.shape[0], plan.num_keys)
        flat = store.slots(plan.stored).flatten()
        for keys, values in zip(store.keys, store.values, strict=True):
            yield _LayerMemory(keys, values, flat, extent)

    def _eager(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        logits: Tensor = self.network(tokens, plan, store)
        return logits

    def _give_up(self, error: Exception) -> None:
        self.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        _LOG.warning("layers are not compiled, and run as they are from now on: %s", self.failed)


def _kind(block: nn.Module) -> type[nn.Module]:
    """Returns what makes layers differ in more than sizes: one feed-forward layer, or experts."""
    assert isinstance(block, Block)
    return type(block.feed_forward)


def _compiled() -> Callable[..., Tensor]:
    """Returns a layer's function to compile, of its own: variants are counted by code object."""
    own = FunctionType(_layer.__code__.replace(), globals(), "_layer")
    compiled: Callable[..., Tensor] = torch.compile(own, dynamic=True)
    return compiled


def _variant(tokens: Tensor, plan: StepPlan, store: KVStore | None) -> tuple[object, ...]:
    """Returns what makes a variant: compilers treat sizes of 1 apart."""
    rows, width = tokens.shape
    shape = plan.shape
    one_mask = None if plan.attention_mask is None else plan.attention_mask.shape[1] == 1
    stored = store is not None and plan.stored is not None
    strided = store is not None and store.shape.num_rows != rows
    single = shape.narrows and shape.num_logit_rows == 1
    small = (rows == 1, width == 1, shape.num_seen == 1, single)
    return (small, one_mask, stored, shape.num_stored < width, strided, shape.narrows)
