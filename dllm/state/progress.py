"""Between two steps: rows end, rows enter their next block, and the host learns where all are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, or_, sub
from typing import Literal

import torch
from torch import Tensor

from dllm.state.canvas import Canvas
from dllm.state.rows import record
from dllm.state.standing import HostCount
from dllm.state.stopping import truncate

# What an end token does: nothing; end its row once all before it is there; the same, and nothing
# after it is committed; end its row once its block is full and not held; cut the row at once.
AtEnd = Literal["ignore", "stop", "skip", "block", "truncate"]
# Which columns (B, C) bool a pass feeds; or how the host counts them, where it can.
Feeds = Callable[[Canvas], Tensor] | HostCount

_COUNT = "count "  # begins the names of what the cache noted in its `counts` (B, c) int64


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
    together: bool = False  # each row has a mask in its block, and so takes part in the next pass
    fed_end: int = 0  # the last column, exclusive, that any unfinished row feeds; 0: not known

    def joined(self, rows: Sequence[Progress]) -> Progress:
        """Returns the progress of this canvas once other rows are in it; who is finished stays.

        Nothing is counted any more: caches that count let rows in when all others are finished.
        """
        joined = {name: max(vars(one)[name] for one in (self, *rows)) for name in vars(self)}
        own = {"finished": self.finished, "counts": (), "together": False}
        return Progress(**{**joined, **own})


def settle(
    canvas: Canvas,
    lockstep: bool,
    at_eos: AtEnd,
    feeds: Feeds | None = None,
    spares: bool = False,
) -> Progress:
    """Finishes complete rows, moves rows to their next block and reports, in one transfer.

    `lockstep` holds every row at its block until all rows have filled theirs. `feeds` says
    which columns (B, C) the next pass feeds, `spares` is explained at `end_rows`. What follows
    from a row's end or move is written where there is one, which the host knows by then; where
    there is none, the same tensors are put back, of which something may be kept.
    """
    found = _end_rows(canvas, at_eos, spares)
    ahead = _next_blocks(canvas, found.first, lockstep)
    before = canvas.block_start, canvas.block_end, canvas.entry_step, canvas.block_step
    if feeds is not None and not isinstance(feeds, HostCount):  # they go by the blocks
        _place(canvas, ahead)
    fed = _fed(canvas, feeds)
    numbers = _read(canvas, fed, found, ahead)
    progress = _progress(canvas, numbers)
    if progress.entered:
        _enter(canvas, ahead, found.masked)
    else:
        canvas.block_start, canvas.block_end, canvas.entry_step, canvas.block_step = before
    done = sum(over << row for row, over in enumerate((*progress.finished, True)))
    canvas.finished = canvas.keep("finished", lambda _: canvas.finished, done)
    canvas.note_open(ahead.opened)
    if isinstance(fed, Tensor):
        canvas.note_fed(fed)
    if any(numbers.get("complete", ())):
        _fill(canvas, found)
    return progress


def end_rows(canvas: Canvas, at_eos: AtEnd, spares: bool = False) -> None:
    """Finishes complete rows, and fills what they leave masked.

    `spares` has the first pass of a block cut no row off: there it is the refresh (dInfer's rule).
    """
    _fill(canvas, _end_rows(canvas, at_eos, spares))


@dataclass(frozen=True)
class _Found:
    """The masks that rows have left."""

    masked: Tensor  # (B, C) bool
    first: Tensor  # (B,) int64 the first one's column, 0 where there is none
    complete: Tensor | None = None  # (B,) bool: an end token makes them superfluous


def _end_rows(canvas: Canvas, at_eos: AtEnd, spares: bool) -> _Found:
    """Marks complete rows as finished; what they leave masked is not filled yet."""
    if at_eos == "truncate":
        truncate(canvas, spares)
    masked, done = canvas.masked, canvas.finished
    some, first = masked.max(1)
    if canvas.layout.keep_history:
        some = some | canvas.held
    if at_eos == "ignore":
        canvas.finished = done >= some  # done, or nothing left
        return _Found(masked, first)
    complete = _complete(canvas, some, first, at_eos == "block")
    if canvas.layout.keep_history:
        canvas.held = canvas.held > complete
    canvas.finished = (done | complete) >= some
    return _Found(masked, first, complete)


def _complete(canvas: Canvas, some: Tensor, first: Tensor, whole_block: bool) -> Tensor:
    """Returns which rows with something to do are complete up to their first end token, (B,) bool.

    `some` (B,) have, whose first mask is at column `first` (B,). With `whole_block`, a row is
    complete when its block is full, no longer held, and it has an end token.
    """
    ending, end = canvas.ended.max(1)
    if whole_block:
        complete = ending & (end < canvas.block_end) & (first >= canvas.block_end)
        return complete > canvas.held if canvas.layout.keep_history else complete
    before = end < first
    if canvas.layout.keep_history:  # held rows may have no mask
        before = before | ~canvas.masked.any(1)
    return ending & before & some


def _fill(canvas: Canvas, found: _Found) -> None:
    """Fills what complete rows leave masked."""
    if found.complete is not None:
        left = found.masked & found.complete[:, None]
        canvas.overwrite(left, canvas.layout.fill_token_id)


@dataclass(frozen=True)
class _Ahead:
    """The rows that go on to their next block, and what all rows look at then."""

    moving: Tensor  # (B,) bool
    start: Tensor  # (B,) int64 where the block begins
    opened: Tensor  # (B, W) bool: columns of the window that may be committed


def _next_blocks(canvas: Canvas, first: Tensor, lockstep: bool) -> _Ahead:
    """Returns where rows stand once those whose block is full are at that of their first mask.

    Blocks are counted in whole ones from where the last one ended.
    """
    block = canvas.layout.block_length
    stays = canvas.finished | canvas.held if canvas.layout.keep_history else canvas.finished
    moving = (first >= canvas.block_end) > stays
    if lockstep and canvas.layout.num_rows > 1:
        moving = moving & (moving | canvas.finished).all()
    skipped = (first - canvas.block_end).div(block, rounding_mode="floor")
    start = torch.where(moving, canvas.block_end.add(skipped, alpha=block), canvas.block_start)
    return _Ahead(moving, start, canvas.open_columns(start))


def _place(canvas: Canvas, ahead: _Ahead) -> None:
    """Sets the bounds of the blocks that rows are at, and since when: what a cache feeds by."""
    moving, end = ahead.moving, ahead.start + canvas.layout.block_length
    canvas.block_start = ahead.start
    canvas.block_end = torch.where(moving, end, canvas.block_end)
    canvas.entry_step = torch.where(moving, canvas.step, canvas.entry_step)
    canvas.block_step = torch.where(moving, 0, canvas.block_step)


def _enter(canvas: Canvas, ahead: _Ahead, masked: Tensor) -> None:
    """Moves rows to their next block; `masked` (B, C) bool is what waits for a token."""
    block, moving = canvas.layout.block_length, ahead.moving
    _place(canvas, ahead)
    canvas.fresh = canvas.fresh | moving
    if canvas.layout.can_shorten:
        canvas.entry_length = torch.where(moving, canvas.length, canvas.entry_length)
    start = canvas.block_start[:, None]
    record(canvas.block_entry, start, moving[:, None], canvas.step.int()[:, None])
    count = masked.gather(1, start + canvas.numbers[:block]).sum(1)
    canvas.block_masks = torch.where(moving, count, canvas.block_masks)


def progress_of(canvas: Canvas, feeds: Feeds | None) -> Progress:
    """Returns what the host must know of the canvas: the one transfer of a step."""
    return _progress(canvas, _read(canvas, _fed(canvas, feeds)))


def progress_of_rows(canvas: Canvas, feeds: Feeds | None) -> list[Progress]:
    """Returns what the host must know of each row by itself, in one transfer."""
    figures = _read(canvas, _fed(canvas, feeds))
    rows = zip(*figures.values(), strict=True)
    return [_progress(canvas, {n: [v] for n, v in zip(figures, row, strict=True)}) for row in rows]


def _fed(canvas: Canvas, feeds: Feeds | None) -> Tensor | HostCount | None:
    """Returns which columns (B, C) bool the next pass feeds, or what counts them."""
    return feeds if feeds is None or isinstance(feeds, HostCount) else feeds(canvas)


def _read(
    canvas: Canvas,
    fed: Tensor | HostCount | None,
    found: _Found | None = None,
    ahead: _Ahead | None = None,
) -> dict[str, list[int]]:
    """Returns the figures of rows by name, a number for each row, `ahead` of a move.

    Figures as they stand, in one operation: what follows from them is worked out by the host.
    """
    opened = canvas.open_columns() if ahead is None else ahead.opened
    figures = {
        "finished": canvas.finished,
        "broken": canvas.broken,
        "start": canvas.block_start if ahead is None else ahead.start,
        "end": canvas.block_end,
        "length": canvas.length,
        "step": canvas.step,
        "entry_step": canvas.entry_step,
        "block_step": canvas.block_step,
        "num_open": opened.sum(1),
    }
    if ahead is not None:
        figures["moving"] = ahead.moving
    if found is not None:
        figures["first"] = found.first
        if found.complete is not None:
            figures["complete"] = found.complete
    if canvas.variants is not None:
        figures["comparing"] = canvas.variants.needed
    if isinstance(fed, HostCount):
        figures |= fed.figures(canvas, figures["start"])
    elif fed is not None:
        figures["num_fed"] = fed.sum(1)
    if canvas.drafts is not None:
        figures["num_variants"] = canvas.drafts.count
    if (counts := getattr(canvas.cache_state, "counts", None)) is not None:
        figures |= {f"{_COUNT}{place}": one for place, one in enumerate(counts.unbind(1))}
    table = torch.stack(list(figures.values())).tolist()
    numbers: dict[str, list[int]] = dict(zip(figures, table, strict=True))
    if isinstance(fed, HostCount):
        numbers |= fed.counted(numbers, canvas.layout.window_length)
    return numbers


def _progress(canvas: Canvas, figures: Mapping[str, Sequence[int]]) -> Progress:
    """Returns what the figures of rows say, by name a number for each row."""
    finished, broken = tuple(map(bool, figures["finished"])), any(figures["broken"])
    together = not (canvas.layout.keep_history or any(finished))
    if any(finished):  # from here on, of the rows that are under way
        going = [row for row, done in enumerate(finished) if not done]
        figures = {name: [of[row] for row in going] for name, of in figures.items()}

    def most(numbers: Iterable[int]) -> int:
        return max(numbers, default=0)

    largest = {name: most(numbers) for name, numbers in figures.items()}
    step, begun, start = figures["step"], figures["entry_step"], figures["start"]
    begins, end = [number == 0 for number in figures["block_step"]], figures["end"]
    if moving := figures.get("moving"):
        begins, block = list(map(or_, begins, moving)), canvas.layout.block_length
        bounds = zip(start, moving, end, strict=True)
        end = [at + block if moves else last for at, moves, last in bounds]
        clocks = zip(step, moving, begun, strict=True)
        begun = [now if moves else then for now, moves, then in clocks]
    first = figures.get("first", end)
    return Progress(
        unfinished=not all(finished),
        entered=bool(most(begins)),
        broken=broken,
        remaining=most(map(sub, figures["length"], start)),
        length=largest["length"],
        reach=most(map(min, figures["length"], end)),
        num_fed=largest.get("num_fed", 0),
        fed_end=largest.get("fed_end", 0),
        comparing=largest.get("comparing", 0) > 0,
        block_forwards=most(map(sub, step, begun)),
        num_variants=max(largest.get("num_variants", 1), 1),  # none is drafted where all ended
        num_forwards=largest["step"],
        num_open=largest["num_open"],
        finished=finished,
        together=together and not any(map(ge, first, end)),
        counts=tuple(number for name, number in largest.items() if name.startswith(_COUNT)),
    )
