"""Between two steps: rows end, and rows enter their next block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dllm.state.canvas import NEVER, Canvas, record
from dllm.state.status import Feeds, Status, status_of

# What an end token does: nothing; end its row once all before it is there; the same, and nothing
# after it is committed; end its row once its block is full; cut the row at once.
AtEnd = Literal["ignore", "stop", "skip", "block", "truncate"]


def settle(canvas: Canvas, lockstep: bool, at_eos: AtEnd, feeds: Feeds | None = None) -> Status:
    """Finishes complete rows, moves rows to their next block and reports, in one transfer.

    `lockstep` holds every row at its block until all rows have filled theirs. `feeds` says
    which columns (B, C) the next pass feeds.
    """
    masked = end_rows(canvas, at_eos)
    first = masked.int().argmax(1)
    moving = (first >= canvas.block_end) & ~canvas.finished & ~canvas.held
    if lockstep:
        moving = moving & (moving | canvas.finished).all()
    _enter(canvas, moving, first, masked)
    return status_of(canvas, feeds)


def end_rows(canvas: Canvas, at_eos: AtEnd) -> Tensor:
    """Finishes complete rows; returns which columns wait for a token, (B, C) bool."""
    if at_eos == "truncate":
        _truncate(canvas)
    masked = canvas.masked
    if at_eos != "ignore":
        complete = _fill_complete(canvas, masked, whole_block=at_eos == "block")
        masked, canvas.held = masked & ~complete, canvas.held & ~complete[:, 0]
    canvas.finished = canvas.finished | ~(masked.any(1) | canvas.held)
    return masked


def _enter(canvas: Canvas, moving: Tensor, first: Tensor, masked: Tensor) -> None:
    """Moves rows to the block of their first mask, counted in whole blocks from the last."""
    block = canvas.layout.block_length
    skipped = (first - canvas.block_end).div(block, rounding_mode="floor") * block
    canvas.block_start = torch.where(moving, canvas.block_end + skipped, canvas.block_start)
    canvas.block_end = torch.where(moving, canvas.block_start + block, canvas.block_end)
    canvas.block_step = torch.where(moving, 0, canvas.block_step)
    canvas.fresh = canvas.fresh | moving
    if canvas.layout.can_shorten:
        canvas.entry_length = torch.where(moving, canvas.length, canvas.entry_length)
    canvas.entry_step = torch.where(moving, canvas.step, canvas.entry_step)
    start = canvas.block_start[:, None]
    entry = canvas.step.to(torch.int32)[:, None]
    record(canvas.block_entry, start, moving[:, None], entry)
    count = masked.gather(1, start + canvas.numbers[:block]).sum(1)
    canvas.block_masks = torch.where(moving, count, canvas.block_masks)


def _truncate(canvas: Canvas) -> None:
    """Overwrites everything after the first end token of each row."""
    ended = canvas.ended.int()
    after = (ended.cumsum(1) > ended) & ~canvas.fixed
    canvas.tokens.masked_fill_(after, canvas.layout.fill_token_id)
    canvas.commit_step.masked_fill_(after, NEVER)
    canvas.commit_confidence.masked_fill_(after, float("nan"))


def _fill_complete(canvas: Canvas, masked: Tensor, whole_block: bool) -> Tensor:
    """Fills every row that is complete up to its first end token; (B, 1) bool, such rows.

    With `whole_block`, a row is complete when its block is full and it has an end token.
    """
    if whole_block:
        passed = canvas.numbers < canvas.block_end[:, None]
        full = ~(masked & passed).any(1, keepdim=True)
        complete = (canvas.ended & passed).any(1, keepdim=True) & full
    else:
        pending = masked.int().cumsum(1) > 0
        complete = (canvas.ended & ~pending).any(1, keepdim=True)
    canvas.tokens.masked_fill_(masked & complete, canvas.layout.fill_token_id)
    return complete
