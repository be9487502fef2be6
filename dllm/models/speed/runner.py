"""The contract of other ways to run the passes of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape

Pass = Callable[[Tensor, StepPlan, KVStore | None], Tensor]  # what `Transformer` is


class Runner(Protocol):
    """Runs the passes of one network, with the results of the network itself."""

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store."""
        ...

    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V)."""
        ...


def is_plain(plan: StepPlan, store: KVStore | None) -> bool:
    """Whether a pass is no more than its tensors: nothing is noted, chosen or left beside K/V."""
    asks = plan.maps or plan.sparse or plan.retain is not None or plan.reuse is not None
    return not asks and (store is None or store.stamp is None)
