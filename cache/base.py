"""The contract of every cache: which columns a pass feeds, stores, attends to and predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dllm.models.config import ModelSpec
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.plan import PassKind, StepPlan
from dllm.state.progress import Progress
from dllm.state.store import KVStore

FirstToken = Literal["feed", "force"]


@dataclass(frozen=True)
class Cache(ABC):
    """Plans forward passes; holds no tensors, the K/V store belongs to the loop."""

    source: ClassVar[str]  # paper and code that the policy is from
    uses_store: ClassVar[bool] = True  # needs a model with a K/V store
    lockstep: ClassVar[bool] = True  # all rows enter their next block together
    names_columns: ClassVar[bool] = False  # feeds the columns that `feeds` names
    watches: ClassVar[bool] = False  # notes what each pass showed
    needs_plan: ClassVar[bool] = False  # needs to know what the next step commits
    final_blocks: ClassVar[bool] = False  # what it stored of finished blocks serves later runs too
    # A pass within a block is a function of the canvas and of the block's refresh.
    replayable: ClassVar[bool] = False
    even: ClassVar[bool] = False  # a row that enters feeds no more columns than the others do

    @abstractmethod
    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        """Returns the next pass for a canvas, given what the host knows of it."""

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        """Returns which columns the next pass feeds, (B, C) bool; the loop counts them."""
        raise NotImplementedError(f"{type(self).__name__} feeds a range of columns")

    def prefill(self, canvas: Canvas, spec: ModelSpec) -> Iterator[StepPlan]:
        """Yields passes over the prompts before the first step, without logits; normally none."""
        return iter(())

    def watch(
        self,
        canvas: Canvas,
        plan: StepPlan,
        store: KVStore | None,
        candidates: Candidates,
        further: Candidates | None,
    ) -> Any:
        """Returns what the next plans find in `canvas.cache_state`.

        Called after each pass of a plan, before the step is taken. `further` are the candidates of
        logits that the plan asks for behind those of the window.
        """
        raise NotImplementedError(f"{type(self).__name__} notes nothing")

    def admits(self, progress: Progress) -> bool:
        """Whether further rows may enter the canvas now, and what it holds stays right."""
        return not self.lockstep or progress.entered or not progress.unfinished

    def check(self, spec: ModelSpec) -> None:
        """Raises ValueError when the policy cannot serve a model."""

    def summary(self) -> dict[str, Any]:
        """Returns the name and options as a mapping that builds the same cache again."""
        return {"name": type(self).__module__.rpartition(".")[2], **vars(self)}


def every_column(
    canvas: Canvas, spec: ModelSpec, store: bool, width: int | None = None
) -> StepPlan:
    """Returns the pass that feeds the first `width` columns; exact whatever the store holds.

    None: the whole canvas; `progress.length` leaves out what was cut off from all rows.
    """
    width = canvas.layout.num_columns if width is None else width
    columns = canvas.numbers[:width]
    columns = columns.expand(canvas.layout.num_rows, width)
    return _plan("refresh", columns, canvas, spec, store)


def seen_up_to(length: Tensor, plan: StepPlan, canvas: Canvas, spec: ModelSpec) -> StepPlan:
    """Returns the plan in which keys up to each row's `length` (B,) are visible."""
    return replace(
        plan, attention_mask=_visible(plan.positions, plan.num_keys, length, canvas, spec)
    )


def block_entry(
    canvas: Canvas, progress: Progress, spec: ModelSpec, first_token: FirstToken
) -> StepPlan:
    """Returns the refresh that begins a block; `force` makes it commit the first column only."""
    plan = every_column(canvas, spec, store=True, width=progress.length)
    if first_token == "feed":
        return plan
    first = canvas.columns() == canvas.block_start[:, None]
    return replace(plan, eligible=first, forced=torch.ones_like(canvas.finished))


def block_refresh(
    every: int | None, canvas: Canvas, progress: Progress, spec: ModelSpec, first_token: FirstToken
) -> StepPlan | None:
    """Returns the refresh that is due, of a block that begins or after `every` forwards, if any."""
    if progress.entered:
        return block_entry(canvas, progress, spec, first_token)
    if every is not None and progress.block_forwards % every == 0:
        return every_column(canvas, spec, store=True, width=progress.length)
    return None


def check_refresh(every: int | None) -> None:
    """Raises ValueError when refreshes would be less than a forward apart."""
    if every is not None and every < 1:
        raise ValueError(f"refresh_every={every} must be at least 1, or none for never")


def check_first_token(first_token: FirstToken, spec: ModelSpec) -> None:
    """Raises ValueError when `force` is asked of a model whose logits are not shifted."""
    if first_token == "force" and not spec.logit_shift:
        raise ValueError("first_token='force' is for models with shifted logits; use 'feed' here")


def columns_from(start: Tensor, width: int, canvas: Canvas, spec: ModelSpec) -> StepPlan:
    """Returns the pass that feeds `width` columns from `start` (B,) on and reads the store.

    Columns past the canvas are clamped to its last spare one, which nothing attends to.
    """
    offsets = canvas.numbers[:width]
    last = canvas.tokens.shape[1] - 1
    columns = (start[:, None] + offsets).clamp(0, last)
    return _plan("step", columns, canvas, spec, store=True)


def predictors(wanted: Tensor, spec: ModelSpec) -> Tensor:
    """Returns the columns whose pass gives logits of the columns `wanted`, (B, C) bool."""
    if not spec.logit_shift:
        return wanted
    return torch.cat([wanted[:, 1:], torch.zeros_like(wanted[:, :1])], 1)


def chosen_columns(
    fed: Tensor, canvas: Canvas, progress: Progress, spec: ModelSpec, seen: Tensor | None = None
) -> StepPlan:
    """Returns the pass that feeds the columns `fed` (B, C) bool.

    At most `progress.num_fed` of a row; rows that feed fewer feed the last spare column again,
    which nothing attends to. Keys of the columns `seen` (B, C) bool are visible; None: all.
    """
    layout = canvas.layout
    order = (~fed).to(torch.uint8).sort(dim=1, stable=True).indices[:, : progress.num_fed]
    real = fed.gather(1, order)
    columns = torch.where(real, order, layout.num_stored - 1)
    number = canvas.numbers[: columns.shape[1]].expand_as(columns)
    fed_at = torch.zeros_like(canvas.tokens).scatter(1, columns, number)
    predictor = canvas.columns() - spec.logit_shift
    predicted, predictor = predictor >= 0, predictor.clamp(min=0)
    mask = _visible(columns, layout.num_columns, None, canvas, spec)
    if seen is not None:
        seen = seen[:, None, : layout.num_columns]
        mask = seen if mask is None else seen & mask
    return StepPlan(
        kind="step",
        positions=columns,
        logit_rows=fed_at.gather(1, predictor),
        num_keys=layout.num_columns,
        attention_mask=mask,
        stored=_stored(columns, canvas).where(real, -1),
        known=fed.gather(1, predictor) & predicted,
    )


def _plan(
    kind: PassKind, columns: Tensor, canvas: Canvas, spec: ModelSpec, store: bool
) -> StepPlan:
    num_keys = canvas.layout.num_columns if store else columns.shape[1]
    # The fed columns are contiguous.
    logit_rows = canvas.columns() - spec.logit_shift - columns[:, :1]
    last = columns.shape[1] - 1
    everything = kind == "refresh"
    return StepPlan(
        kind=kind,
        positions=columns,
        logit_rows=logit_rows.clamp(0, last),
        num_keys=num_keys,
        attention_mask=_visible(columns, num_keys, None, canvas, spec),
        stored=_stored(columns, canvas) if store else None,
        known=None if everything else (logit_rows >= 0) & (logit_rows <= last),
    )


def _stored(columns: Tensor, canvas: Canvas) -> Tensor:
    """Returns at which columns the keys of fed columns (B, Q) are kept; -1: cut off, not kept."""
    if not canvas.layout.can_shorten:
        return columns
    return torch.where(columns < canvas.length[:, None], columns, -1)


def _visible(
    columns: Tensor, num_keys: int, length: Tensor | None, canvas: Canvas, spec: ModelSpec
) -> Tensor | None:
    """Returns which keys each fed column sees, (B, 1 or Q, K) bool; None if all."""
    if spec.attention == "full" and length is None and not canvas.layout.ragged:
        return None
    keys = canvas.numbers[:num_keys]
    real = keys < (canvas.length if length is None else length)[:, None, None]
    if spec.attention == "full":
        return real
    block = spec.block_length if spec.attention == "block_causal" else 1
    assert block is not None
    return real & (keys // block <= columns[..., None] // block)
