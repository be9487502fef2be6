"""Between two steps: rows end, rows enter their next block, and the host learns where all are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dllm.state.canvas import NEVER, Canvas, record

# What an end token does: nothing; end its row once all before it is there; the same, and nothing
# after it is committed; end its row once its block is full and not held; cut the row at once.
AtEnd = Literal["ignore", "stop", "skip", "block", "truncate"]
Feeds = Callable[[Canvas], Tensor]  # which columns (B, C) bool a pass feeds

_FLAGS = ("unfinished", "entered", "broken", "comparing")


@dataclass(frozen=True)
class Progress:
    """What the host must know between two steps, read in one transfer."""

    unfinished: bool  # some row still has masks
    entered: bool  # some row stands at a block that has not been forwarded yet
    broken: bool  # some row got logits that are not numbers
    remaining: int  # the most columns that any unfinished row has from its block's start on
    length: int  # the most columns of any unfinished row
    reach: int  # the last column, exclusive, of any unfinished row's block
    num_fed: int  # the most columns that any unfinished row feeds in the next pass, else 0
    comparing: bool  # some row has variants to compare
    block_forwards: int  # the most forwards that any unfinished row took at its block
    num_variants: int = 1  # the most canvases that any unfinished row has drafted, itself included
    num_forwards: int = 0  # the most forwards that any unfinished row took
    num_open: int = 0  # the most masked columns that the window of any unfinished row has
    finished: tuple[bool, ...] = ()  # which rows are
    counts: tuple[int, ...] = ()  # the most that any unfinished row has of what a cache counts

    def joined(self, rows: Sequence[Progress]) -> Progress:
        """Returns the progress of this canvas once other rows are in it; who is finished stays.

        Nothing is counted any more: caches that count let rows in when all others are finished.
        """
        joined = {name: max(vars(one)[name] for one in (self, *rows)) for name in vars(self)}
        return Progress(**{**joined, "finished": self.finished, "counts": ()})


def settle(
    canvas: Canvas,
    lockstep: bool,
    at_eos: AtEnd,
    feeds: Feeds | None = None,
    spares: bool = False,
) -> Progress:
    """Finishes complete rows, moves rows to their next block and reports, in one transfer.

    `lockstep` holds every row at its block until all rows have filled theirs. `feeds` says
    which columns (B, C) the next pass feeds, `spares` is explained at `end_rows`.
    """
    masked = end_rows(canvas, at_eos, spares)
    first = masked.int().argmax(1)
    moving = (first >= canvas.block_end) & ~canvas.finished & ~canvas.held
    if lockstep:
        moving = moving & (moving | canvas.finished).all()
    _enter(canvas, moving, first, masked)
    return progress_of(canvas, feeds)


def end_rows(canvas: Canvas, at_eos: AtEnd, spares: bool = False) -> Tensor:
    """Finishes complete rows; returns which columns wait for a token, (B, C) bool.

    `spares` has the first pass of a block cut no row off: there it is the refresh (dInfer's rule).
    """
    if at_eos == "truncate":
        _truncate(canvas, spares)
    masked = canvas.masked
    if at_eos != "ignore":
        ended, whole_block = canvas.ended, at_eos == "block"
        complete = _fill_complete(canvas, masked, ended, whole_block)
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


def cut_after(canvas: Canvas, last: Tensor) -> None:
    """Ends rows behind the column `last` (B,) int64; rows where that is no column go on."""
    _overwrite(canvas, (canvas.numbers > last[:, None]) & ~canvas.fixed)
    canvas.clean = torch.minimum(canvas.clean, last + 1)  # what was stored is of other tokens
    canvas.held = canvas.held & (last >= canvas.tokens.shape[1])


def _truncate(canvas: Canvas, spares: bool) -> None:
    """Overwrites everything after the first end token of each row.

    A row that its block's first pass finished stays as it is, however long others run: its steps
    stand still.
    """
    ended = canvas.ended.int()
    after = (ended.cumsum(1) > ended) & ~canvas.fixed
    if spares:
        after = after & (canvas.step - canvas.entry_step != 1)[:, None]
    _overwrite(canvas, after)


def _overwrite(canvas: Canvas, after: Tensor) -> None:
    """Makes columns (B, C) bool padding that nobody committed."""
    canvas.tokens.masked_fill_(after, canvas.layout.fill_token_id)
    canvas.commit_step.masked_fill_(after, NEVER)
    canvas.commit_confidence.masked_fill_(after, float("nan"))


def _fill_complete(canvas: Canvas, masked: Tensor, ended: Tensor, whole_block: bool) -> Tensor:
    """Fills every row that is complete up to its first end token; (B, 1) bool, such rows.

    With `whole_block`, a row is complete when its block is full, no longer held, and it has an end
    token.
    """
    if whole_block:
        passed = canvas.numbers < canvas.block_end[:, None]
        full = ~(masked & passed).any(1, keepdim=True)
        complete = (ended & passed).any(1, keepdim=True) & full & ~canvas.held[:, None]
    else:
        pending = masked.int().cumsum(1) > 0
        complete = (ended & ~pending).any(1, keepdim=True)
    canvas.tokens.masked_fill_(masked & complete, canvas.layout.fill_token_id)
    return complete


def progress_of(canvas: Canvas, feeds: Feeds | None) -> Progress:
    """Returns what the host must know of the canvas: the one transfer of a step."""
    names, figures = _figures(canvas, feeds)
    numbers = torch.cat([figures.amax(1), canvas.finished]).tolist()
    return _progress(names, numbers[: len(figures)], numbers[len(figures) :])


def progress_of_rows(canvas: Canvas, feeds: Feeds | None) -> list[Progress]:
    """Returns what the host must know of each row by itself, in one transfer."""
    names, figures = _figures(canvas, feeds)
    rows = torch.cat([figures, canvas.finished[None]]).T.tolist()
    return [_progress(names, numbers[:-1], numbers[-1:]) for numbers in rows]


def _figures(canvas: Canvas, feeds: Feeds | None) -> tuple[list[str], Tensor]:
    """Returns the names of a progress' first figures, and each row's of all, (n, B) int64.

    Those without a name are what the cache noted in its `counts` (B, c) int64.
    Few operations on stacked figures: this is done in every step, on tensors of a few bytes.
    """
    running = ~canvas.finished
    flags = {
        "unfinished": running,
        "entered": (canvas.block_step == 0) & running,
        "broken": canvas.broken,
    }
    sizes = {  # of rows that are not finished
        "remaining": canvas.length - canvas.block_start,
        "length": canvas.length,
        "reach": torch.minimum(canvas.length, canvas.block_end),
        "block_forwards": canvas.step - canvas.entry_step,
        "num_forwards": canvas.step,
        "num_open": canvas.open_columns().sum(1),
    }
    if canvas.variants is not None:
        flags["comparing"] = canvas.variants.needed & running
    if feeds is not None:
        sizes["num_fed"] = feeds(canvas).sum(1)
    if canvas.drafts is not None:
        sizes["num_variants"] = canvas.drafts.count
    figures = [torch.stack(list(flags.values())), torch.stack(list(sizes.values())) * running]
    if (counts := getattr(canvas.cache_state, "counts", None)) is not None:
        figures.append(counts.T * running)
    return [*flags, *sizes], torch.cat(figures)


def _progress(names: Sequence[str], numbers: Sequence[int], finished: Sequence[int]) -> Progress:
    known: dict[str, Any] = {"num_fed": 0, **dict(zip(names, numbers, strict=False))}
    known |= {name: bool(known.get(name)) for name in _FLAGS}
    known["num_variants"] = max(known.get("num_variants", 1), 1)  # none is drafted where all ended
    counts = tuple(numbers[len(names) :])
    return Progress(**known, finished=tuple(map(bool, finished)), counts=counts)
