"""The columns that a step looks at, what it writes into them, and what was written."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Window:
    """The columns of each row that a step looks at."""

    columns: Tensor  # (B, W) int64
    tokens: Tensor  # (B, W) int64
    masked: Tensor  # (B, W) bool: may be committed now
    block: Tensor  # (B, W) bool: belongs to the row's block
    known: Tensor  # (B, W) bool: the pass gives its logits
    active: Tensor  # (B,) bool: the block has masks, or the row is held at it


@dataclass(frozen=True)
class Change:
    """What one step writes into the windows."""

    chosen: Tensor  # (B, W) bool
    tokens: Tensor  # (B, W) int64, the mask token where a column is opened again
    confidence: Tensor  # (B, W) float
    num_steps: Tensor | int = 1  # (B,) int64 schedule steps that it stands for
    hold: Tensor | None = None  # (B,) bool: the row stays at its block though it is full
    length: Tensor | None = None  # (B,) int64 column at which the row is cut off
    block_end: Tensor | None = None  # (B,) int64 column at which the block ends


@dataclass(frozen=True)
class Written:
    """The windows of one pass before and after it."""

    columns: Tensor  # (B, W) int64
    before: Tensor  # (B, W) int64 tokens
    after: Tensor  # (B, W) int64
    step: Tensor  # (B,) int64 forwards of each row before this one
    prompts: Tensor  # (B,) int64 whose windows they are
