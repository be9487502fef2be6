"""Counts operations that are kernels on a GPU: of a layer, of a pass, and of what is around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import dllm
from dllm.kernels import statistics
from dllm.models.model import Runner
from dllm.models.speed import kernel_passes
from dllm.models.speed.kernel_passes import KernelPasses
from dllm.models.speed.linear import fuse
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape

# They make or rename tensors, and launch nothing.
_FREE = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "_unsafe_view",
    "detach",
    "lift_fresh",
)
OURS = ("add_and_norm", "gated", "rotate_and_write")


def _same_memory(made: object, args: Sequence[Any]) -> bool:
    """Whether an operation left its first tensor where it is: a view, or a copy without need."""
    made = made[0] if isinstance(made, list | tuple) else made
    if not isinstance(made, Tensor):
        return True
    first = args[0] if args else None
    same = isinstance(first, Tensor) and first.untyped_storage().data_ptr()
    return same == made.untyped_storage().data_ptr()


class Kernels(TorchDispatchMode):
    """Counts operations by the place where they are asked for; a kernel of ours is one."""

    def __init__(self) -> None:
        super().__init__()
        self.place = "loop"
        self.found: dict[str, Counter[str]] = {}

    def note(self, name: str) -> None:
        self.found.setdefault(self.place, Counter())[name] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name not in _FREE and (func._schema.is_mutable or not _same_memory(made, args)):
            self.note(name)
        return made

    def as_one(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a kernel's function that counts as one, whatever interprets it."""

        def counted(*args: Any) -> Any:
            self.note(work.__name__)
            with _disable_current_modes():
                return work(*args)

        return counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts what happens inside, with our kernels as they are on a GPU."""
        with ExitStack() as stack:
            for name in OURS:
                own = self.as_one(getattr(kernel_passes, name))
                stack.enter_context(patch.object(kernel_passes, name, own))
            own = self.as_one(statistics.in_one_pass)
            stack.enter_context(patch.object(statistics, "in_one_pass", own))
            stack.enter_context(patch.object(statistics, "has_kernel", lambda device: True))
            stack.enter_context(self)
            yield


class Placed:
    """Runs passes, which count as such."""

    reuses_features = False

    def __init__(self, run: Any, kernels: Kernels) -> None:
        self.run, self.kernels = run, kernels

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        return KVStore(shape, dtype, devices)

    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        self.kernels.place = "pass"
        logits: Tensor = self.run(tokens, plan, store)
        self.kernels.place = "loop"
        return logits


def network_of(model: dllm.HostedModel, num_layers: int) -> Transformer:
    """Returns the network with its first layer so many times, in joined projections."""
    network = deepcopy(model.network)
    network.blocks = torch.nn.ModuleList(deepcopy(network.blocks[0]) for _ in range(num_layers))
    network.config = replace(network.config, num_layers=num_layers)
    fuse(network)
    return network


def of_step(
    model: dllm.HostedModel, by_kernels: bool, num_layers: int, prompts: int = 2, **options: Any
) -> Kernels:
    """Returns what a step asks for that neither begins a block nor ends one, in any row."""
    kernels, network = Kernels(), network_of(model, num_layers)
    run: Runner | Transformer = KernelPasses(network) if by_kernels else network
    counted = replace(model, network=network, runner=Placed(run, kernels))
    rows = [[5, 90, 7, 30], [4] * 8][:prompts]
    settings = {"max_new_tokens": 8, "block_length": 8, "scheduler": "fixed_quota"}
    steps = iter(dllm.stream(counted, rows, **{**settings, **options}))
    before = [next(steps) for _ in range(2)][-1]  # the first pass of a block feeds more
    with kernels.counting():
        within = next(steps)
    stands = [event.columns.tolist() for event in (before, within, next(steps))]
    assert stands[0] == stands[1] == stands[2]
    return kernels


def counts(model: dllm.HostedModel, by_kernels: bool, **options: Any) -> dict[str, int]:
    """Returns the kernels of a layer, of the rest of a pass, and of the loop around it."""
    few, more = (of_step(model, by_kernels, layers, **options).found for layers in (2, 3))
    layer = more["pass"].total() - few["pass"].total()
    return {
        "layer": layer,
        "beside the layers": few["pass"].total() - 2 * layer,
        "loop": few["loop"].total(),
    }
