"""Where rows stand, in numbers: how the host counts what a pass feeds before it is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import and_, eq, or_
from typing import Generic, TypeVar

from torch import Tensor

from dllm.state.canvas import Canvas

Number = TypeVar("Number", Tensor, int)


@dataclass(frozen=True)
class Standing(Generic[Number]):
    """Where a row stands before a pass, in numbers; or where all rows do, (B,) int64 each."""

    start: Number  # where its block begins
    length: Number
    clean: Number  # columns before it are stored with their final tokens
    prompt_length: Number
    unbegun: Number | None = None  # its block was not fed yet, and begins with a mask


@dataclass
class HostCount:
    """Counts the columns that a pass feeds of a row by what the host knows of it.

    For caches whose columns follow from where rows stand: nobody need name them, on the device,
    in a step that leaves all rows where they are.
    """

    # From which column to before which one a row is fed that is not finished, if a step may commit
    # so many columns of it.
    of_row: Callable[[Standing[int], int], tuple[int, int]]
    asks_begin: bool = False  # it reads `Standing.unbegun`
    # What it counted last, and of what: in most steps all rows stand where they did.
    _last: tuple[list[Sequence[int]], int, dict[str, list[int]]] | None = None

    def figures(self, canvas: Canvas, start: Tensor) -> dict[str, Tensor]:
        """Returns what it needs of rows whose blocks begin at `start` (B,), by name, (B,) each."""
        found = {"clean": canvas.clean, "prompt_length": canvas.prompt_length}
        if self.asks_begin:
            found["open_begin"] = canvas.masked.gather(1, start[:, None])[:, 0]
        return found

    def counted(self, figures: Mapping[str, Sequence[int]], window: int) -> dict[str, list[int]]:
        """Returns how many columns of each row are fed, and where they end, by name.

        `figures` are all that the host reads of rows.
        """
        columns = [figures[name] for name in ("start", "length", "clean", "prompt_length")]
        if self.asks_begin:
            came = map(eq, figures["step"], figures["entry_step"])
            if "moving" in figures:
                came = map(or_, came, figures["moving"])
            columns.append(list(map(and_, came, figures["open_begin"])))
        if self._last is None or self._last[:2] != (columns, window):
            spans = [self.of_row(Standing(*row), window) for row in zip(*columns, strict=True)]
            counts = [max(end - max(start, 0), 0) for start, end in spans]
            found = {"num_fed": counts, "fed_end": [max(end, 0) for _, end in spans]}
            self._last = columns, window, found
        return self._last[2]
