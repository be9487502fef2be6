"""The passes of one rank, and its part of the K/V store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dllm.models.layer_policies import FeatureReuse, partly_computed
from dllm.models.parallel.group import Group
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape


class ShardedStore(KVStore):
    """The keys and values of a rank's own heads."""

    def __init__(
        self,
        shape: StoreShape,
        dtype: torch.dtype,
        layer_devices: Sequence[torch.device],
        group: Group,
    ) -> None:
        super().__init__(shape, dtype, layer_devices)
        self.group = group

    def mean_over_heads(self, mean: Tensor) -> Tensor:
        return self.group.added_up(mean / self.group.size)

    def all_heads(self, own: Tensor) -> Tensor:
        return torch.cat(self.group.joined(own), 2)


class Sharded:
    """Runs passes that every rank runs at the same time, with the same tokens and plans."""

    reuses_features = True

    def __init__(self, network: Transformer, group: Group) -> None:
        self.network, self.group = network, group

    def own(self, shape: StoreShape) -> StoreShape:
        """Returns the extent of this rank's part of a store."""
        first, last = self.group.part(shape.num_kv_heads)
        return replace(shape, num_kv_heads=last - first)

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store of the rank's heads."""
        return ShardedStore(self.own(shape), dtype, devices, self.group)

    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V), the same on each rank."""
        if store is not None and isinstance(plan.policy, FeatureReuse):
            return partly_computed(self.network, tokens, plan, store)
        logits: Tensor = self.network(tokens, plan, store)
        return logits
