"""Models that tests share: small enough for a CPU, sensitive to order and context."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore

# One thread: the models are so small that more only wait for each other.
torch.set_num_threads(1)

# Where no GPU is, Triton's kernels are interpreted; it must know before its first import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("llada_mha", "llada_gqa", "dream_gqa")


@cache
def golden_model(name: str, dtype: str = "float64") -> dllm.HostedModel:
    """Returns one of the models on which the official implementations were recorded."""
    return dllm.load(GOLDEN / "models" / name, dtype=dtype)


def random_prompts(count: int, seed: int = 0, low: int = 3, high: int = 40) -> list[list[int]]:
    """Returns prompts of different lengths in token ids of the golden models."""
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=source).tolist()
    return [torch.randint(0, 125, (n,), generator=source).tolist() for n in lengths]


class Watched:
    """A model that hands each pass to a check, before and after it runs."""

    def __init__(self, model: dllm.HostedModel, check: Any) -> None:
        self.model, self.check = model, check

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore) -> Tensor:
        before = [tensor.clone() for tensor in (*store.keys, *store.values)]
        logits = self.model.forward(tokens, plan, store)
        self.check(tokens, plan, store, before, logits)
        return logits


@pytest.fixture(scope="session")
def tiny() -> dllm.HostedModel:
    return dllm.load("tiny")
