"""YaRN: rotary embeddings that are stretched, slow frequencies more than fast ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.models.fields import LARGEST, NO_LIMIT, TINIEST, Allowed, Numbers, check_fields

_FLAG = (False, True)
YARN_FIELDS: Allowed = {
    "factor": Numbers(TINIEST, LARGEST, whole=False),
    "original_length": Numbers(1, NO_LIMIT),
    "beta_fast": Numbers(TINIEST, LARGEST, whole=False),
    "beta_slow": Numbers(TINIEST, LARGEST, whole=False),
    "magnitude": Numbers(TINIEST, LARGEST, whole=False),
    "query_beta": Numbers(0, LARGEST, whole=False),
    "rounded": _FLAG,
}


@dataclass(frozen=True)
class YarnConfig:
    """Rotary embeddings stretched by a factor, slow frequencies more than fast ones (YaRN).

    Source: arXiv 2309.00071, equations 17 to 23; `_compute_yarn_parameters` of transformers.
    """

    factor: float  # below 1 too: it is taken as it is, not made of two lengths
    original_length: int  # tokens before stretching
    # Turns over the original length: from `beta_fast` on nothing is stretched, to `beta_slow` all.
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0  # of the rotated queries and keys
    # Rotated queries at position p are multiplied by 1 + query_beta ln(1 + floor(p / original)).
    query_beta: float = 0.0
    rounded: bool = True  # the range between both betas ends at whole frequencies

    def __post_init__(self) -> None:
        check_fields(self, YARN_FIELDS)
        if self.beta_slow > self.beta_fast:
            raise ValueError(f"beta_slow={self.beta_slow} is over beta_fast={self.beta_fast}")


def kept(count: int, theta: float, yarn: YarnConfig) -> Tensor:
    """Returns how much of each rotary frequency (n,) is not stretched: 1 all of it, 0 nothing."""

    def place(turns: float) -> float:
        """Returns the frequency, counted from the fastest, with so many turns in the original."""
        return count * math.log(yarn.original_length / (turns * 2 * math.pi)) / math.log(theta)

    first, last = place(yarn.beta_fast), place(yarn.beta_slow)
    if yarn.rounded:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * count - 1)
    width = last - first or 0.001  # as in the references
    return 1 - ((torch.arange(count, dtype=torch.float32) - first) / width).clamp(0, 1)
