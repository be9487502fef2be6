"""What a generation starts and waits for: operations in and around the model, passes, host waits.

Numbers of the code and of a version of torch, not of a machine: they are the same in every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dllm
from benchmarks.shapes import random_model
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore

COUNTED = (
    *(("fixed_quota", cache) for cache in ("none", "prefix", "dual", "dkv")),
    *((name, "dual") for name in ("threshold:0.9", "factor:1.0", "localleap", "entropy_bound")),
    *((name, "dual") for name in ("prophet", "klass")),
)
PROMPTS = (8, 9)  # tokens of the two rows
NEW_TOKENS, BLOCK = 16, 8

# Each makes the host wait for a GPU, the last ones for the number of what they find.
_WAITS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
_FINDS = ("aten.nonzero.default", "aten.masked_select.default")


@dataclass
class Counts:
    """Of one generation."""

    forwards: int = 0
    inside: int = 0  # operations of the model
    outside: int = 0  # of all else
    waits: int = 0  # times that the host waits between the first pass and the last
    names: Counter[str] = field(default_factory=Counter)  # operations outside, by name

    def record(self) -> dict[str, int]:
        """Returns the numbers that are compared."""
        return {name: getattr(self, name) for name in ("forwards", "inside", "outside", "waits")}


class Counted:
    """A model that notes when it runs."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model, self.counts, self.running = model, Counts(), False
        self.waited, self.waited_before = 0, 0  # so far, and up to the first pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns the model's logits."""
        if not self.counts.forwards:
            self.waited_before = self.waited
        self.counts.forwards += 1
        self.counts.waits = self.waited - self.waited_before
        self.running = True
        try:
            return self.model.forward(tokens, plan, store)
        finally:
            self.running = False


class _Operations(TorchDispatchMode):
    def __init__(self, model: Counted) -> None:
        super().__init__()
        self.model = model

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts = self.model.counts
        if self.model.running:
            counts.inside += 1
        else:
            counts.outside += 1
            counts.names[str(func)] += 1
        self.model.waited += str(func) in _FINDS or _has_mask(func, args)
        return func(*args, **(kwargs or {}))


class _Waits(TorchFunctionMode):
    def __init__(self, model: Counted) -> None:
        super().__init__()
        self.model = model

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.model.waited += getattr(func, "__name__", "") in _WAITS
        return func(*args, **(kwargs or {}))


def _has_mask(func: Any, args: Any) -> bool:
    """Whether an index is a mask, whose true columns the host must know."""
    if str(func) != "aten.index.Tensor":
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


@contextmanager
def counting(model: dllm.HostedModel) -> Iterator[Counted]:
    """Yields a model whose generations are counted."""
    counted = Counted(model)
    with _Waits(counted), _Operations(counted):
        yield counted


def count(scheduler: str, cache: str) -> Counts:
    """Returns the counts of one generation of two rows on a random network."""
    model = random_model("tiny", torch.float32)
    _decode(model, scheduler, cache)  # what is made once in a process is there then
    with counting(model) as counted:
        _decode(counted, scheduler, cache)
    return counted.counts


def _decode(model: Any, scheduler: str, cache: str) -> None:
    dllm.generate(
        model,
        [list(range(length)) for length in PROMPTS],
        scheduler=scheduler,
        cache=cache,
        max_new_tokens=NEW_TOKENS,
        block_length=BLOCK,
        at_eos="ignore",
    )
