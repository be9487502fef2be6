"""What one forward pass feeds, stores, attends to and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dllm.models.retention import Retention
from dllm.models.reuse import Reuse

PassKind = Literal["refresh", "step", "commit"]


@dataclass(frozen=True)
class StepPlan:
    """One forward pass, as a cache policy planned it.

    A key is stored, then attended to: a query always sees the fresh keys of all fed columns.
    """

    kind: PassKind  # for accounting: refresh rewrites every slot
    columns: Tensor  # (B, Q) int64 canvas columns to feed, also their RoPE positions
    head: Tensor  # (B, w) int64 index into the Q fed columns of the rows whose logits are wanted
    num_keys: int  # K: attention reads store slots [0, K) of each row
    attend: Tensor | None = None  # (B, 1 or Q, seen keys) bool, True = visible; None: all
    # (B, q <= Q) int64 flat slots of the first fed columns; the others' keys are seen in this pass
    # alone, behind the K of the store. None: nothing is stored, K = Q.
    slots: Tensor | None = None
    # (B, w <= W) int64 columns of the window, by place, that the head's rows are of; None: all
    places: Tensor | None = None
    known: Tensor | None = None  # (B, W) bool: columns whose logits the pass gives; None: all
    eligible: Tensor | None = None  # (B, W) bool: only these may be committed; None: all known
    forced: Tensor | None = None  # (B,) bool: rows that commit what is eligible, unasked
    num_canvases: int = 1  # of each row, fed one behind the other (`speculation/tree.py`)
    num_shadows: int = 0  # the last fed columns hold the mask token, whatever the canvas holds
    extra: Tensor | None = None  # (B, E) int64 columns whose logits follow those of the window
    maps: bool = False  # every layer leaves its attention, mean over heads, in `store.maps`
    retain: Retention | None = None  # every layer chooses keys that it sees from now on
    reuse: Reuse | None = None  # every layer computes a part of the fed columns
    sparse: bool = False  # every layer sees, of the keys in `attend`, only those it has chosen

    @property
    def narrows(self) -> bool:
        """Whether the last layer goes on with the head's rows alone after keys and values.

        Nobody reads its output of other columns, unless a pass looks at all of a layer.
        """
        whole = self.maps or self.retain is not None or self.reuse is not None
        return not whole and self.head.shape[1] < self.columns.shape[1]

    @property
    def num_seen(self) -> int:
        """Keys that a query meets: those of the store and, behind them, what is not kept."""
        kept = self.columns.shape[1] if self.slots is None else self.slots.shape[1]
        return self.num_keys + self.columns.shape[1] - kept
