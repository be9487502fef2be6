"""Models that tests share: small enough for a CPU, sensitive to order and context."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import dllm

# One thread: the models are so small that more only wait for each other.
torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def tiny() -> dllm.HostedModel:
    return dllm.load("tiny")
