"""What fits into memory, said when it ran out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm.metrics import Meter
from dllm.models.cost import Cost, cost_of
from dllm.models.memory import (
    CROWDED,
    GUARDED,
    NotEnoughMemoryError,
    available,
    ran_out,
    readable,
)
from dllm.models.model import DenoisingModel
from dllm.state.window import Layout

__all__ = [
    "GUARDED",
    "Demand",
    "Extent",
    "NotEnoughMemoryError",
    "available",
    "in_use",
    "ran_out",
    "readable",
    "rows_that_fit",
]


@dataclass(frozen=True)
class Demand:
    """What a generation asks of the memory."""

    model: DenoisingModel
    uses_store: bool
    store_variants: int  # rows of the store for each row of the batch
    num_variants: int  # canvases of a row that one pass runs at most
    layout: Layout
    meter: Meter
    before: int = 0  # bytes of the device that were in use when the generation began
    sampled: bool = False  # tokens are drawn

    def explain(self, reason: str) -> str:
        """Returns what was asked when memory ran out, what would fit and the way out."""
        passes, num_rows = sum(self.meter.forwards.values()), self.layout.num_rows
        when = f"in pass {passes}" if passes else "before the first pass"
        parts = [f"{num_rows} row(s) of {self.layout.num_columns} columns"]
        if self.store_bytes:
            parts.append(f"a K/V store of {readable(self.store_bytes)}")
        asked = f"memory ran out {when}, for {' and '.join(parts)} ({reason})"
        return f"{asked}; {_fitting(self.largest_batch(), num_rows)}; {self._way_out()}"

    @property
    def store_bytes(self) -> int | None:
        """The size of the K/V store, made or not; None where it cannot be known."""
        if not self.uses_store:
            return 0
        cost = cost_of(self.model)
        slots = self.layout.num_rows * self.layout.num_stored * self.store_variants
        return self.meter.store_bytes or (None if cost is None else slots * cost.slot_bytes)

    def largest_batch(self) -> int | None:
        """Returns how many rows would fit by the larger of estimate and measure; None: unknown.

        It may be more than were asked for: others use the memory too, and it is cut into pieces.
        """
        cost, free = cost_of(self.model), available(self.meter.device)
        if cost is None or free is None:
            return None
        return free // max(self._row_bytes(cost), 1)

    def _row_bytes(self, cost: Cost) -> int:
        """Returns the bytes of one row of the batch, with all its variants."""
        layout, variants = self.layout, self.num_variants
        stored = layout.num_stored * self.store_variants if self.uses_store else 0
        fed = layout.num_columns + layout.num_spare
        width = layout.width + layout.num_spare
        estimate = cost.row_bytes(stored, fed * variants, width * variants, self.sampled)
        measured = _peak(self.meter.device) - self.before if self.meter.forwards else 0
        return max(estimate, measured // layout.num_rows)

    def _way_out(self) -> str:
        ways = []
        if self.layout.num_rows > 1:
            ways.append("decode fewer prompts at once (batch_size)")
        ways.append("give fewer max_new_tokens")
        if self.uses_store:
            ways.append("take cache='none', which stores nothing")
        if self.num_variants > 1:
            ways.append(
                "take a scheduler without variants of a row, a verifier with shorter drafts"
            )
        return f"{', '.join(ways)}, or a narrower dtype"


@dataclass(frozen=True)
class Extent:
    """The size of a row that is to be decoded."""

    num_columns: int  # prompt and answer
    width: int  # columns of a block
    uses_store: bool
    sampled: bool = False  # tokens are drawn


def rows_that_fit(model: DenoisingModel, extent: Extent) -> int | None:
    """Returns how many rows fit into what can be had now, some of it left; None: not known.

    By estimate; 0 where not even one does.
    """
    cost, free = cost_of(model), available(model.device)
    if cost is None or free is None:
        return None
    columns = extent.num_columns + extent.width  # with the spare ones
    stored = columns if extent.uses_store else 0
    a_row = cost.row_bytes(stored, columns, 2 * extent.width, extent.sampled)
    return int(CROWDED * free) // max(a_row, 1)


def _fitting(rows: int | None, asked: int) -> str:
    if rows is None:
        return "what would fit is not known"
    if rows >= asked:
        half = f": try {asked // 2} row(s)" if asked > 1 else ""
        return f"by estimate that fits, so something else may hold the memory{half}"
    if rows < 1:
        return "by estimate not even one row of this length fits"
    return f"by estimate about {rows} row(s) of this length fit"


def in_use(device: torch.device) -> int:
    """Returns the bytes of a device that tensors hold; 0 where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
