"""Which columns a layer computes, where the others keep what it gave them before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Reuse:
    """An order to every layer but the first: compute some columns, and take the rest as they were.

    What attention and feed-forward gave a column is added to its state again. The first layer
    computes all columns: that is where a new token enters.
    """

    fresh: Tensor  # (B, Q) bool: columns that are computed
    drifting: Tensor  # (B, Q) bool: of these, the ones whose values changed most are computed too
    count: Tensor  # (B,) int64 how many of them
    num_fresh: int  # the most `fresh` columns of a row
    num_compared: int  # the most `drifting` columns of a row; 0: none is chosen
    num_chosen: int  # the most that `count` is

    def num_computed(self, num_fed: int) -> int:
        """Returns how many of the fed columns, shadows included, a layer computes at most."""
        behind = num_fed - self.fresh.shape[1]
        return min(self.num_fresh + behind + self.num_chosen, num_fed)

    def of_rows(self, rows: Tensor) -> Reuse:
        """Returns the order for some rows (n,) int64."""
        fresh, drifting, count = self.fresh[rows], self.drifting[rows], self.count[rows]
        return Reuse(fresh, drifting, count, self.num_fresh, self.num_compared, self.num_chosen)
