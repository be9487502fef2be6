"""What a kernel must know to draw tokens as they are drawn outside of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: by Gumbel noise, as `Sampling` draws them operation by operation."""

    seeds: Tensor  # (B,) int64, with the step and the column what noise is a hash of
    step: Tensor  # (B,) or (B, w) int64
    columns: Tensor  # (B, w) int64
    temperature: float
    tempered: bool  # statistics are of logits over the temperature
