"""The contract of every cache: which columns a pass feeds, stores, attends to and predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dllm.canvas import Canvas, Status
from dllm.models.config import ModelSpec
from dllm.plan import PassKind, StepPlan

FirstToken = Literal["feed", "force"]


@dataclass(frozen=True)
class Cache(ABC):
    """Plans forward passes; holds no tensors, the K/V store belongs to the loop."""

    source: ClassVar[str]  # paper and code that the policy is from
    stores: ClassVar[bool] = True  # needs a model with a K/V store
    lockstep: ClassVar[bool] = True  # all rows enter their next block together

    @abstractmethod
    def plan(self, canvas: Canvas, status: Status, spec: ModelSpec) -> StepPlan:
        """Returns the next pass for a canvas, given what the host knows of it."""

    def check(self, spec: ModelSpec) -> None:
        """Raises ValueError when the policy cannot serve a model."""

    def summary(self) -> dict[str, Any]:
        """Returns the name and options as a mapping that builds the same cache again."""
        return {"name": type(self).__module__.rpartition(".")[2], **vars(self)}


def every_column(
    canvas: Canvas, spec: ModelSpec, store: bool, length: Tensor | None = None
) -> StepPlan:
    """Returns the pass that feeds the whole canvas; exact whatever the store holds.

    Keys up to each row's `length` (B,) are visible; None: up to where the row ends.
    """
    width = canvas.layout.num_columns
    columns = torch.arange(width, device=canvas.tokens.device)
    columns = columns.expand(canvas.layout.num_rows, width)
    plan = _plan("refresh", columns, canvas, spec, store)
    return plan if length is None else replace(plan, attend=_visible(columns, length, canvas, spec))


def block_entry(canvas: Canvas, spec: ModelSpec, first_token: FirstToken) -> StepPlan:
    """Returns the refresh that begins a block; `force` makes it commit the first column only."""
    plan = every_column(canvas, spec, store=True)
    if first_token == "feed":
        return plan
    first = canvas.columns() == canvas.block_start[:, None]
    return replace(plan, eligible=first, forced=True)


def check_first_token(first_token: FirstToken, spec: ModelSpec) -> None:
    """Raises ValueError when `force` is asked of a model whose logits are not shifted."""
    if first_token == "force" and not spec.logit_shift:
        raise ValueError("first_token='force' is for models with shifted logits; use 'feed' here")


def columns_from(
    start: Tensor, width: int, canvas: Canvas, spec: ModelSpec, length: Tensor | None = None
) -> StepPlan:
    """Returns the pass that feeds `width` columns from `start` (B,) on and reads the store.

    Columns past the canvas are clamped to its last spare one, which nothing attends to. Keys up
    to each row's `length` (B,) are visible; None: up to where the row ends now.
    """
    offsets = torch.arange(width, device=canvas.tokens.device)
    last = canvas.tokens.shape[1] - 1
    columns = (start[:, None] + offsets).clamp(0, last)
    plan = _plan("step", columns, canvas, spec, store=True)
    return plan if length is None else replace(plan, attend=_visible(columns, length, canvas, spec))


def _plan(
    kind: PassKind, columns: Tensor, canvas: Canvas, spec: ModelSpec, store: bool
) -> StepPlan:
    num_keys = canvas.layout.num_columns
    head = canvas.columns() - spec.logit_shift - columns[:, :1]  # the fed columns are contiguous
    last = columns.shape[1] - 1
    everything = kind == "refresh"
    return StepPlan(
        kind=kind,
        columns=columns,
        head=head.clamp(0, last),
        num_keys=num_keys,
        attend=_visible(columns, None, canvas, spec),
        slots=_slots(columns, canvas) if store else None,
        known=None if everything else (head >= 0) & (head <= last),
    )


def _slots(columns: Tensor, canvas: Canvas) -> Tensor:
    """Returns where the fed columns' keys are kept (B, Q); those of a cut-off end are not."""
    layout, rows = canvas.layout, torch.arange(canvas.layout.num_rows, device=columns.device)
    slots = rows[:, None] * layout.num_stored + columns
    if not layout.can_shorten:
        return slots
    return torch.where(columns < canvas.length[:, None], slots, layout.num_rows * layout.num_stored)


def _visible(
    columns: Tensor, length: Tensor | None, canvas: Canvas, spec: ModelSpec
) -> Tensor | None:
    """Returns which keys each fed column sees, (B, 1 or Q, K) bool; None if all."""
    if spec.attention == "full" and length is None and not canvas.layout.ragged:
        return None
    keys = torch.arange(canvas.layout.num_columns, device=columns.device)
    real = keys < (canvas.length if length is None else length)[:, None, None]
    if spec.attention == "full":
        return real
    block = spec.block_length if spec.attention == "block_causal" else 1
    assert block is not None
    return real & (keys // block <= columns[..., None] // block)
