"""Rows that enter a canvas, leave it or are compared in it: what is copied between canvases."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dllm.state.canvas import Canvas
from dllm.state.carried import State
from dllm.state.processing import Rows
from dllm.state.variants import Drafts, no_variants
from dllm.state.window import StepEvent, Written

# Of all rows alike; a row's first pass feeds everything, whatever was planned.
_SHARED = ("ends", "numbers", "planned")
_IN_PLACE = ("tokens", "given")  # others keep them across steps, guidance for one


def record(history: Tensor, columns: Tensor, commit: Tensor, value: Tensor) -> None:
    """Writes value (B, n) into history (B, C) at columns (B, n), where commit (B, n) says so."""
    history.scatter_(1, columns, torch.where(commit, value, history.gather(1, columns)))


def start_scheduler(canvas: Canvas, state: State) -> None:
    """Takes a scheduler's state before its first step; at the start all rows are alike."""
    canvas.scheduler_state = state
    canvas.scheduler_start = {name: value[:1].clone() for name, value in state.items()}


def start_drafts(canvas: Canvas, drafts: Drafts) -> None:
    """Takes a verifier's drafts, of which there are none yet."""
    canvas.drafts = drafts


def count_blocks_from_zero(canvas: Canvas) -> None:
    """Aligns blocks to column 0, as block-causal models were trained."""
    block = canvas.layout.block_length
    start = canvas.prompt_length.div(block, rounding_mode="floor") * block
    canvas.first_block, canvas.block_start, canvas.block_end = start, start.clone(), start.clone()


def read_prompt(canvas: Canvas, end: Tensor) -> None:
    """Notes that a pass has fed the prompts up to columns `end` (B,)."""
    canvas.clean = torch.maximum(canvas.clean, torch.minimum(canvas.first_block, end))


def recall_prompt(canvas: Canvas, length: Tensor) -> None:
    """Notes that the store has the final keys of columns before `length` (B,)."""
    canvas.clean = length.to(canvas.clean.device)


def make_room(canvas: Canvas, gap: Tensor, room: Tensor) -> None:
    """Hides the columns of each row's gap behind the first `gap` (B,) of its `room` (B,)."""
    canvas.gap, canvas.room = gap, room
    canvas.fixed = canvas.given = canvas.fixed & ~canvas.hidden


def text_of(canvas: Canvas) -> Rows:
    """Returns the rows as rules of logits read them: what a gap hides is no text, as a mask is."""
    tokens = canvas.tokens
    if canvas.gap is not None:
        tokens = tokens.masked_fill(canvas.hidden, canvas.layout.mask_token_id)
    return Rows(tokens, canvas.prompt_length, canvas.length, canvas.prompts)


def copied(canvas: Canvas) -> Canvas:
    """Returns a canvas of its own that can be decoded further without this one."""
    other = copy.copy(canvas)
    for name, value in vars(canvas).items():
        if isinstance(value, Tensor):
            setattr(other, name, value.clone())
    if canvas.scheduler_state is not None:
        state = canvas.scheduler_state.items()
        other.scheduler_state = {name: value.clone() for name, value in state}
    other.memo = {}
    return other


def part_aliases(canvas: Canvas) -> None:
    """Gives each tensor that has an entry a row memory of its own, so that rows can be filed."""
    seen: set[int] = set()
    for name, value in _by_row(canvas).items():
        if value.data_ptr() in seen:
            setattr(canvas, name, value.clone())
        seen.add(value.data_ptr())


def rows_at(canvas: Canvas, rows: Tensor) -> Canvas:
    """Returns a canvas of its own with some rows (n,) int64 of another, before their first step."""
    chosen = copy.copy(canvas)
    for name, value in _by_row(chosen).items():
        setattr(chosen, name, value[rows])
    chosen.memo, chosen.drafts = {}, None
    chosen.layout = replace(canvas.layout, num_rows=len(rows))
    return chosen


def file_rows(canvas: Canvas, among: Canvas) -> None:
    """Copies all rows of a canvas to where their prompts stand among all."""
    for name, value in _by_row(canvas).items():
        vars(among)[name].index_copy_(0, canvas.prompts, value)
    among.memo = {}
    if canvas.drafts is not None:
        among.drafts = canvas.drafts.filed(among.drafts, canvas.prompts, len(among.tokens))


def seat_rows(canvas: Canvas, seats: Tensor, source: Canvas, rows: Tensor) -> None:
    """Puts rows (n,) of another canvas at `seats` (n,) int64, as they are before their first step.

    All that a row is lives in tensors with one entry a row.
    """
    for name, value in _by_row(canvas).items():
        entering = vars(source)[name][rows]
        if name in _IN_PLACE:
            value.index_copy_(0, seats, entering)
        else:  # two names may stand for one tensor
            setattr(canvas, name, value.index_copy(0, seats, entering))
    canvas.writes += 1
    if canvas.variants is not None:
        num_rows, count = canvas.variants.columns.shape
        none = no_variants(num_rows, count, seats.device)
        seated = torch.zeros_like(canvas.finished).index_fill(0, seats, True)
        canvas.variants = canvas.variants.merge(none, seated)
    if canvas.drafts is not None:
        canvas.drafts = canvas.drafts.restarted(canvas.tokens, seats)
    if canvas.scheduler_state is not None:
        start, state = canvas.scheduler_start, canvas.scheduler_state.items()
        canvas.scheduler_state = {
            name: value.index_copy(0, seats, start[name].expand(len(seats), *value.shape[1:]))
            for name, value in state
        }
    canvas.cache_state = None  # caches that have one let prompts in when nobody is left


def reseat(canvas: Canvas, seats: Tensor) -> None:
    """Keeps the rows at `seats` (n,) int64, in this order; one may be named several times.

    Everything of a row goes along, so that a canvas may lose rows at any step. What a cache noted
    of earlier passes has one entry a row, too.
    """
    for name, value in _by_row(canvas).items():
        setattr(canvas, name, value[seats])
    canvas.planned = None if canvas.planned is None else canvas.planned[seats]
    canvas.variants, canvas.drafts, canvas.cache_state = (
        None if held is None else _fields_at(held, seats)
        for held in (canvas.variants, canvas.drafts, canvas.cache_state)
    )
    if canvas.scheduler_state is not None:
        state = canvas.scheduler_state.items()
        canvas.scheduler_state = {name: value[seats] for name, value in state}
    canvas.layout = replace(canvas.layout, num_rows=len(seats))


def number_row(canvas: Canvas, number: int) -> None:
    """Names the only row of a canvas, as events will."""
    canvas.prompts = torch.full_like(canvas.prompts, number)


def release_rows(canvas: Canvas, seats: Tensor) -> None:
    """Has rows (n,) int64 take no further part, as they stand."""
    canvas.finished = canvas.finished.index_fill(0, seats, True)


def adopt_variants(canvas: Canvas, winner: Tensor, active: Tensor) -> None:
    """Writes what the best variant (B,) of each active row (B,) has over the canvas."""
    variants, at = canvas.variants, winner[:, None]
    assert variants is not None
    column, confidence = variants.columns.gather(1, at), variants.confidence.gather(1, at)
    compared = variants.needed & active
    chosen = (column >= 0) & compared[:, None]
    column = column.clamp(min=0)
    before = canvas.tokens.gather(1, column)
    after = torch.where(chosen, variants.tokens.gather(1, at), before)
    canvas.tokens.scatter_(1, column, after)
    canvas.writes += 1
    if canvas.layout.keep_history:
        written = Written(column, before, after, canvas.step.clone(), canvas.prompts)
        canvas.history.append(written)
    record(canvas.commit_step, column, chosen, canvas.step.int()[:, None])
    record(canvas.commit_confidence, column, chosen, confidence.float())
    further = torch.where(compared, variants.count - 1, 0)
    canvas.further_forwards = canvas.further_forwards + further


def count_drafts(canvas: Canvas, active: Tensor, steps: Tensor, row_forwards: Tensor) -> None:
    """Counts a pass over the drafts of rows `active` (B,), which took the steps since `steps` (B,).

    Its steps were counted as a forward each; `row_forwards` (B,) are those before it.
    """
    drafts = canvas.drafts
    assert drafts is not None
    row_forwards = row_forwards + torch.where(active, drafts.count, 0)
    canvas.further_forwards = row_forwards - canvas.step
    drafts.note(active, canvas.step - steps)


def count_prefix(
    canvas: Canvas, event: StepEvent, step: Tensor, num_drafts: Tensor, stored: Tensor
) -> None:
    """Counts a prefix that one pass wrote as the steps that would have written it token by token.

    `step` (B,) are the rows' steps before it, `num_drafts` (B,) the passes that drafted it. The
    store now has the final keys of columns before `stored` (B,).
    """
    drafts, written = canvas.drafts, event.committed
    assert drafts is not None
    took, steps = canvas.step > step, written.sum(1)
    places = step[:, None] + written.cumsum(1) - 1
    record(canvas.commit_step, event.columns, written, places.int())
    row_forwards = canvas.row_forwards + num_drafts
    canvas.step = step + torch.maximum(steps, took.long())
    canvas.further_forwards = row_forwards - canvas.step
    canvas.clean = stored
    drafts.note(took, steps)
    drafts.passes = drafts.passes + num_drafts


def _fields_at(held: Any, rows: Tensor) -> Any:
    """Returns a dataclass of which each tensor has some rows (n,) alone."""
    found = {name: value for name, value in vars(held).items() if isinstance(value, Tensor)}
    return replace(held, **{name: value[rows] for name, value in found.items()})


def _by_row(canvas: Canvas) -> dict[str, Tensor]:
    """Returns the tensors of a canvas that have an entry a row, by name."""
    tensors = {name: value for name, value in vars(canvas).items() if isinstance(value, Tensor)}
    return {name: value for name, value in tensors.items() if name not in _SHARED}
