"""What a kernel must know to draw tokens as they are drawn outside of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: by Gumbel noise, as `Sampling` draws them operation by operation."""

    words: Tensor  # (B, w) int64 that the noise of a column's tokens is a hash of
    temperature: float
    tempered: bool  # statistics are of logits over the temperature
