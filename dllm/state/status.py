"""What the host knows of a canvas between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm.state.canvas import Canvas

Feeds = Callable[[Canvas], Tensor]  # which columns (B, C) bool a pass feeds


@dataclass(frozen=True)
class Status:
    """What the host must know between two steps, read in one transfer."""

    unfinished: bool  # some row still has masks
    entered: bool  # some row stands at a block that has not been forwarded yet
    broken: bool  # some row got logits that are not numbers
    remaining: int  # the most columns that any unfinished row has from its block's start on
    length: int  # the most columns of any unfinished row
    reach: int  # the last column, exclusive, of any unfinished row's block
    num_fed: int  # the most columns that any unfinished row feeds in the next pass, else 0
    branching: bool  # some row has variants to compare
    block_forwards: int  # the most forwards that any unfinished row took at its block
    num_variants: int = 1  # the most canvases that any unfinished row has drafted, itself included
    num_forwards: int = 0  # the most forwards that any unfinished row took
    num_open: int = 0  # the most masked columns that the window of any unfinished row has
    finished: tuple[bool, ...] = ()  # which rows are

    def joined(self, rows: Sequence[Status]) -> Status:
        """Returns the status of this canvas once other rows are in it; who is finished stays."""
        every = [self, *rows]
        told = {name: max(vars(one)[name] for one in every) for name in vars(self)}
        return Status(**{**told, "finished": self.finished})


def status_of(canvas: Canvas, feeds: Feeds | None) -> Status:
    """Returns what the host must know of the canvas: the one transfer of a step."""
    names, figures = _figures(canvas, feeds)
    told = torch.cat([figures.amax(1), canvas.finished]).tolist()
    return _status(names, told[: len(names)], told[len(names) :])


def statuses_of(canvas: Canvas, feeds: Feeds | None) -> list[Status]:
    """Returns what the host must know of each row by itself, in one transfer."""
    names, figures = _figures(canvas, feeds)
    told = torch.cat([figures, canvas.finished[None]]).T.tolist()
    return [_status(names, row[:-1], row[-1:]) for row in told]


def _figures(canvas: Canvas, feeds: Feeds | None) -> tuple[list[str], Tensor]:
    """Returns the names of a status' figures, and each row's, (n, B) int64.

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
    if canvas.branches is not None:
        flags["branching"] = canvas.branches.needed & running
    if feeds is not None:
        sizes["num_fed"] = feeds(canvas).sum(1)
    if canvas.drafts is not None:
        sizes["num_variants"] = canvas.drafts.count
    figures = [torch.stack(list(flags.values())), torch.stack(list(sizes.values())) * running]
    return [*flags, *sizes], torch.cat(figures)


def _status(names: Sequence[str], told: Sequence[int], finished: Sequence[int]) -> Status:
    known: dict[str, Any] = {"num_fed": 0, **dict(zip(names, told, strict=True))}
    known |= {name: bool(known.get(name)) for name in _FLAGS}
    known["num_variants"] = max(known.get("num_variants", 1), 1)  # none is drafted where all ended
    return Status(**known, finished=tuple(map(bool, finished)))


_FLAGS = ("unfinished", "entered", "broken", "branching")
