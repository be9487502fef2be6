"""One forward pass: what it feeds, stores, attends to and returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:  # a policy is shown the store of the layers that it is about
    from dllm.state.store import KVStore

PassKind = Literal["refresh", "step", "commit", "probe", "draft"]


@dataclass(frozen=True)
class Saving:
    """What the layers behind the first leave out of a pass, and what they do besides."""

    skipped: tuple[int, ...] = (0,)  # fed columns that each layer leaves out; one number: all
    values: int = 0  # columns of which a layer takes the values only, or the keys
    numbers: int = 0  # further numbers that a layer makes of a state each

    def left_out(self, num_layers: int) -> int:
        """Returns how many columns that many layers behind the first leave out, all together."""
        return sum(self.skipped) * num_layers // len(self.skipped)


class LayerPolicy:
    """An order of one cache to every layer; `dllm/models/layer_policies.py` has them."""

    whole_layer: ClassVar[bool] = True  # the last layer's output of all fed columns is needed
    keeps_weights: ClassVar[bool] = False  # attention, mean over heads, is left in `store.weights`
    adapts: ClassVar[bool] = False  # attention adds what the model drafts with
    further: Tensor | None = None  # (B, E) int64 columns whose logits follow those of the window

    def of_rows(self, rows: Tensor) -> LayerPolicy:
        """Returns the order for some rows (n,) int64."""
        return self

    def visible(
        self, store: KVStore, layer: int, queries: Tensor, keys: Tensor, mask: Tensor | None
    ) -> Tensor | None:
        """Returns which keys a layer sees of those in `mask`, (B, 1 or Q, K) bool; None: all."""
        return mask

    def saving(self, num_fed: int) -> Saving:
        """Returns what layers leave out of a pass over that many columns."""
        return Saving()


@dataclass(frozen=True)
class PassShape:
    """The extent of a pass, which decides what it costs."""

    kind: PassKind  # for accounting: refresh rewrites every slot
    num_rows: int
    num_fed: int  # columns of a row
    num_keys: int  # of the store
    num_stored: int  # columns of a row whose keys are stored
    num_logit_rows: int  # of a row
    whole_layer: bool = False  # the last layer's output of all fed columns is needed
    saving: Saving = Saving()
    num_canvases: int = 1  # of each row, fed one behind the other

    @property
    def num_seen(self) -> int:
        """Keys that a query meets: those of the store and, behind them, what is not stored."""
        return self.num_keys + self.num_fed - self.num_stored

    @property
    def narrows(self) -> bool:
        """Whether the last layer goes on with the logits' rows alone after keys and values.

        Nobody reads its output of other columns, unless a policy looks at all of a layer.
        """
        return not self.whole_layer and self.num_logit_rows < self.num_fed


@dataclass(frozen=True)
class StepPlan:
    """One forward pass, as a cache planned it.

    A key is stored, then attended to: a query always sees the fresh keys of all fed columns.
    """

    kind: PassKind
    positions: Tensor  # (B, Q) int64 canvas columns to feed
    logit_rows: Tensor  # (B, w) int64 index into the Q fed columns whose logits are returned
    num_keys: int  # K: attention reads the store's columns [0, K) of each row
    attention_mask: Tensor | None = None  # (B, 1 or Q, seen keys) bool, True: seen; None: all
    # (B, q <= Q) int64 columns at which the keys of the first q fed columns are stored, -1 for
    # none; the others' keys are seen in this pass alone, behind the K of the store. None: nothing
    # is stored, K = Q.
    stored: Tensor | None = None
    # (B, w <= W) int64 columns of the window that the first logits are of, from 0; None: all
    logit_columns: Tensor | None = None
    known: Tensor | None = None  # (B, W) bool: columns whose logits the pass gives; None: all
    eligible: Tensor | None = None  # (B, W) bool: only these may be committed; None: all known
    forced: Tensor | None = None  # (B,) bool: rows that commit what is eligible, unasked
    policy: LayerPolicy | None = None  # what a cache asks of the layers besides
    # (B, Q) int64 RoPE positions where some columns before are hidden; None: the columns
    places: Tensor | None = None

    @property
    def shape(self) -> PassShape:
        """The extent of the pass."""
        (num_rows, num_fed), stored = self.positions.shape, self.stored
        policy = self.policy
        return PassShape(
            kind=self.kind,
            num_rows=num_rows,
            num_fed=num_fed,
            num_keys=self.num_keys,
            num_stored=num_fed if stored is None else stored.shape[1],
            num_logit_rows=self.logit_rows.shape[1],
            whole_layer=policy is not None and policy.whole_layer,
            saving=Saving() if policy is None else policy.saving(num_fed),
        )

    def of_rows(self, rows: Tensor) -> StepPlan:
        """Returns the pass over some rows (n,) int64, which may come more than once."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        chosen: dict[str, Any] = {name: value[rows] for name, value in tensors.items()}
        policy = None if self.policy is None else self.policy.of_rows(rows)
        return replace(self, **chosen, policy=policy)

    def with_keys(self, num_keys: int) -> StepPlan:
        """Returns the same pass over more keys of the store, which no column sees."""
        mask, before, where = self.attention_mask, self.num_keys, self.positions.device
        if mask is None:
            every = torch.arange(num_keys + self.shape.num_seen - before, device=where)
            seen = (every < before) | (every >= num_keys)
            seen = seen.expand(len(self.positions), 1, -1)
        else:
            hidden = mask.new_zeros(*mask.shape[:2], num_keys - before)
            seen = torch.cat([mask[..., :before], hidden, mask[..., before:]], -1)
        return replace(self, num_keys=num_keys, attention_mask=seen)
