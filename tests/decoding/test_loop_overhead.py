"""What a step starts outside the model: few operations."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dllm
from benchmarks.shapes import random_model
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore

# Operations a step, with room for other versions of torch. Each costs some microseconds to start,
# on a CPU as on a GPU, so a rise is a slower step wherever the model is fast.
MOST = {
    ("fixed_quota", "none"): 90,
    ("fixed_quota", "dual"): 90,
    ("threshold:0.9", "dual"): 95,
    ("localleap", "dual"): 105,
    ("fixed_quota", "dkv"): 130,
}


class Count(TorchDispatchMode):
    """Counts operations while it is on, but not those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.started: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code is not Silent.forward.__code__:
            frame = frame.f_back
        if frame is None:
            self.started[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Silent:
    """A model whose own operations are not counted."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model
        self.passes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns the model's logits."""
        self.passes += 1
        return self.model.forward(tokens, plan, store)


@pytest.mark.few(1)
@pytest.mark.parametrize(("scheduler", "cache"), MOST)
def test_a_step_starts_few_operations(scheduler: str, cache: str) -> None:
    model = Silent(random_model("tiny", torch.float32))
    with Count() as count:
        dllm.generate(
            model,
            [list(range(8)), list(range(9))],
            scheduler=scheduler,
            cache=cache,
            max_new_tokens=64,
            block_length=32,
            at_eos="ignore",
        )
    started = sum(count.started.values()) / model.passes
    assert started < MOST[scheduler, cache]
    assert count.started["aten.scatter_.src"] > 0  # something was counted
