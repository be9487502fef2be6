"""What one forward pass feeds, stores, attends to and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

PassKind = Literal["refresh", "step", "commit"]


@dataclass(frozen=True)
class StepPlan:
    """One forward pass, as a cache policy planned it.

    A key is stored, then attended to: a query always sees the fresh keys of all fed columns.
    """

    kind: PassKind  # for accounting: refresh rewrites every slot
    columns: Tensor  # (B, Q) int64 canvas columns to feed, also their RoPE positions
    head: Tensor  # (B, W) int64 index into the Q fed columns of the rows whose logits are wanted
    num_keys: int  # K: attention reads store slots [0, K) of each row
    attend: Tensor | None = None  # (B, 1 or Q, K) bool, True = visible; None: all K keys
    slots: Tensor | None = None  # (B, Q) int64 flat slots; None: nothing is stored, K = Q
    known: Tensor | None = None  # (B, W) bool: columns whose logits the pass gives; None: all
    eligible: Tensor | None = None  # (B, W) bool: only these may be committed; None: all known
    forced: bool = False  # commit every eligible column without asking the scheduler
    num_shadows: int = 0  # the last fed columns hold the mask token, whatever the canvas holds
