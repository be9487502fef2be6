"""The same sets where the host computes them: what was worked out once is looked up.

Row by row, so that what is known of a language serves every row that it is asked of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.constraints.bound import ALL
from dllm.constraints.engine import Tables
from dllm.constraints.known import Held, Known, States, joined, known_of
from dllm.constraints.language import OPEN
from dllm.constraints.lines import RowLanguage


@dataclass(frozen=True, eq=False)
class Reached:
    """What stands in the window of a row, and the states on both sides of every column."""

    classes: list[int]  # (W) or OPEN
    before: list[States]  # (W + 1)
    after: list[States]  # (W + 1)


def on_host(tables: Tables) -> bool:
    """Whether tensors are in the memory of the host, which may read them without waiting."""
    return tables.device.type == "cpu"


class Host:
    """The languages of a batch of rows, and what stood in their windows last."""

    def __init__(self, tables: Tables, rows: Sequence[RowLanguage | None]) -> None:
        self.lines, self.rows = tables.lines, rows
        self.known = [None if row is None else known_of(row.language) for row in rows]
        # States are counted over all rows in tensors, and of each row here.
        self._begins = self.lines.offset[self.lines.first]
        self._last: list[Reached | None] = [None] * len(rows)
        # The columns of the windows that were asked about last, and what follows of them alone.
        self._columns = np.empty(0, np.int64)
        self._inside, self._ends = np.empty(0, np.bool_), [b""] * len(rows)

    def read(
        self,
        entry: Tensor,
        tokens: Tensor,
        columns: Tensor,
        masked: Tensor,
        asked: Tensor | None = None,
    ) -> OnHost:
        """Returns what the columns (B, W) of a window may hold, as `Tables.read` does."""
        self._look_at(columns.numpy())
        inside, last = self._inside, self._last
        classes = self.classes(tokens, masked, inside)
        states = (entry.numpy() - self._begins).tolist()
        for row, known in enumerate(self.known):
            if known is not None:
                ends = known.only(states[row]), self._ends[row]
                last[row] = _reached(known, classes[row], ends, last[row])
        wanted = inside if asked is None else inside & asked.numpy()
        return OnHost(self, inside, wanted, last.copy())

    def classes(self, tokens: Tensor, masked: Tensor, inside: NDArray[np.bool_]) -> list[list[int]]:
        """Returns what stands at each column of each row; arguments are (B, W)."""
        lines = self.lines
        if len(lines.classes) == 1:
            found = lines.classes[0].take(tokens.numpy())
        else:
            found = lines.classes[lines.language_of[:, None], tokens.numpy()]
        np.copyto(found, OPEN, where=masked.numpy())
        np.copyto(found, lines.stay[:, None], where=~inside)
        classes: list[list[int]] = found.tolist()
        return classes

    def _look_at(self, columns: NDArray[np.int64]) -> None:
        """Notes which columns (B, W) the languages are about, and what is accepted behind them."""
        if columns.shape == self._columns.shape and (columns == self._columns).all():
            return
        lines, self._columns = self.lines, columns.copy()
        begun = columns >= lines.start[:, None]
        self._inside = begun & (columns < lines.stop[:, None]) & ~lines.free[:, None]
        left = np.minimum(np.maximum(lines.stop - columns[:, -1] - 1, 0), lines.tail_last)
        self._ends = [
            b"" if row is None else np.append(row.tails[tail], False).tobytes()
            for row, tail in zip(self.rows, left.tolist(), strict=True)
        ]


def _reached(
    known: Known, classes: list[int], ends: tuple[States, States], last: Reached | None
) -> Reached:
    """Returns the states around columns, of which few changed since they were last asked of."""
    width = len(classes)
    first, stop = 0, width  # the columns that changed are in these
    before, after = [ends[0]] * (width + 1), [ends[1]] * (width + 1)
    if last is not None and len(last.classes) == width:
        span = _changed(last.classes, classes)
        if last.before[0] == ends[0]:
            first, before = span[0], last.before.copy()
        if last.after[-1] == ends[1]:
            stop, after = span[1], last.after.copy()
    for column in range(first, width):
        before[column + 1] = known.ahead(before[column], classes[column])
    for column in range(stop - 1, -1, -1):
        after[column] = known.behind(after[column + 1], classes[column])
    return Reached(classes, before, after)


def _changed(old: list[int], new: list[int]) -> tuple[int, int]:
    """Returns the first column that differs, and the one behind the last; width and 0: none."""
    if old == new:
        return len(new), 0
    places = [place for place, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    return places[0], places[-1] + 1


@dataclass(frozen=True, eq=False)
class OnHost:
    """What `OnDevice` is, from what a host keeps."""

    host: Host
    inside: NDArray[np.bool_]  # (B, W)
    asked: NDArray[np.bool_]  # (B, W) columns inside of which somebody reads the logits
    reached: list[Reached | None]  # of each row

    @cached_property
    def held(self) -> list[dict[int, Held]]:
        """What each column of each row may hold that is asked about."""
        found: list[dict[int, Held]] = [{} for _ in self.reached]
        places: dict[Known, list[tuple[int, int]]] = {}
        for row, known in enumerate(self.host.known):
            if known is not None:
                columns = self.asked[row].nonzero()[0].tolist()
                places.setdefault(known, []).extend((row, column) for column in columns)
        for known, some in places.items():
            pairs = [self._around(row, column) for row, column in some]
            for (row, column), held in zip(some, known.between(pairs), strict=True):
                found[row][column] = held
        return found

    def _around(self, row: int, column: int) -> tuple[States, States]:
        reached = self.reached[row]
        assert reached is not None
        return reached.before[column], reached.after[column + 1]

    @cached_property
    def allowed(self) -> Tensor:
        """The classes of tokens that each column may hold, (B, W, K) bool."""
        sets = np.ones((*self.asked.shape, self.host.lines.sizes.shape[1]), np.bool_)
        for row, columns in enumerate(self.held):
            for column, held in columns.items():
                sets[row, column] = False
                sets[row, column, : len(held.classes)] = held.classes
        return torch.from_numpy(sets)

    @property
    def single(self) -> Tensor:
        """Which columns may hold one token alone, (B, W) bool."""
        found = np.zeros(self.asked.shape, np.bool_)
        for row, columns in enumerate(self.held):
            for column, held in columns.items():
                found[row, column] = held.single
        return torch.from_numpy(found)

    def hold(self, logits: Tensor, places: Tensor | None, keep: int, spare: bool) -> Tensor:
        """Returns logits (B, w, V) with -inf for what their columns may not hold.

        As `OnDevice.hold`, in their place where nobody else reads them: there is much of them.
        """
        found = logits if spare else torch.empty_like(logits)
        given, into = logits.numpy(), found.numpy()
        kept = given[..., keep].copy()
        for row, (known, held) in enumerate(zip(self.host.known, self.held, strict=True)):
            at = range(self.asked.shape[1]) if places is None else places[row].tolist()
            for line, column in enumerate(at):
                one = held.get(column)
                if one is not None and known is not None:
                    known.bounds.of(one.key).keep(given[row, line], into[row, line])
                elif not spare:
                    ALL.keep(given[row, line], into[row, line])
        into[..., keep] = kept
        return found

    def fits(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Returns which rows can still be filled with other tokens in the window, (B,) bool.

        `masked` (B, W) bool are columns where any may stand. Behind the last column that changes
        all is as it was.
        """
        found = np.ones(len(self.reached), np.bool_)
        classes = self.host.classes(tokens, masked, self.inside)
        for row, (known, reached) in enumerate(zip(self.host.known, self.reached, strict=True)):
            if known is not None and reached is not None:
                first, last = _changed(reached.classes, classes[row])
                first = min(first, last)
                states = reached.before[first]
                for token in classes[row][first:last]:
                    states = known.ahead(states, token)
                found[row] = joined(states, reached.after[last])
        return torch.from_numpy(found)
