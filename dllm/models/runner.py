"""How the passes of a network run, and where: the contract of the ways that are faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

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
    return plan.policy is None and (store is None or store.stamp is None)


def execution_device(module: nn.Module) -> torch.device:
    """Returns where a module computes, which accelerate's offloading parts from its weights."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for inner in (hook, *getattr(hook, "hooks", ())):
            device = getattr(inner, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device
