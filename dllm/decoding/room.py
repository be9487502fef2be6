"""Which rows are decoded beside each other: as many as a step needs, and about as long."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Of the columns of a pass that feeds whole rows, the part that may lie behind shorter ones.
MOST_PADDING = 0.06


@dataclass(frozen=True)
class Room:
    """The rows that a list has beside each other; a row alone always has its place."""

    num_rows: int  # at most
    num_columns: int = sys.maxsize  # of a step, at most
    width: int | None = None  # columns of a row in a step; None: as many as the longest has

    def entering(self, under_way: Sequence[int], waiting: Iterable[int]) -> int:
        """Returns how many of the rows that wait, by length, may join those that are under way."""
        total, longest, rows = sum(under_way), max(under_way, default=0), len(under_way)
        count = 0
        for length in waiting:
            total, longest, rows = total + length, max(longest, length), rows + 1
            if rows > 1 and not self._holds(rows, longest, total):
                break
            count += 1
        return count

    def _holds(self, rows: int, longest: int, total: int) -> bool:
        """Whether so many rows, of so many columns in all, may be decoded at a time."""
        few = rows <= self.num_rows and rows * (self.width or longest) <= self.num_columns
        return few and total >= (1 - MOST_PADDING) * rows * longest
