"""The K/V store: one slot for each canvas column of each row, in every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoreShape:
    """The extent of a store: rows, columns a row, key/value heads and their width."""

    num_rows: int
    num_columns: int
    num_kv_heads: int
    head_dim: int


class KVStore:
    """Holds keys (after RoPE) and values by absolute position, allocated once a generation.

    Slot `b * num_columns + p` belongs to column p of row b; one last slot is scratch, for writes
    that must not be kept. It starts at zero: an unread slot that held NaN would still poison
    attention, because 0 * NaN is NaN.
    """

    def __init__(
        self, shape: StoreShape, dtype: torch.dtype, layer_devices: Sequence[torch.device]
    ) -> None:
        self.shape = shape
        slots = shape.num_rows * shape.num_columns + 1
        size = (slots, shape.num_kv_heads, shape.head_dim)
        self.keys = [torch.zeros(size, dtype=dtype, device=device) for device in layer_devices]
        self.values = [torch.zeros(size, dtype=dtype, device=device) for device in layer_devices]
        self._note_extent()
        first = torch.arange(shape.num_rows)[:, None] * shape.num_columns
        self._slots = first.to(layer_devices[0] if layer_devices else "cpu")  # (rows, 1) the first
        self.stamp: Tensor | None = None  # (slots,) int32 pass of the last write, if it is kept
        self.num_passes = 0  # while stamps are kept
        self.weights: list[Tensor] = []  # (B, Q, K) attention of each layer, if a pass keeps it
        self.change: list[Tensor] = []  # (B,) mean drift of each layer behind the first, if noted
        self.features: dict[int, Tensor] = {}  # (rows, columns, hidden_size) outputs, if reused
        self.kept: list[Tensor | None] = [None] * len(self.keys)  # (rows, columns) bool, if chosen

    @classmethod
    def over(cls, shape: StoreShape, keys: Sequence[Tensor], values: Sequence[Tensor]) -> KVStore:
        """Returns an empty store in the first slots of tensors (n, H, D), one for each layer."""
        store, slots = cls(shape, keys[0].dtype, ()), shape.num_rows * shape.num_columns + 1
        store.keys = [held[:slots].zero_() for held in keys]
        store.values = [held[:slots].zero_() for held in values]
        store._note_extent()
        store.kept = [None] * len(keys)
        store._slots = store._slots.to(keys[0].device)
        return store

    @property
    def scratch(self) -> int:
        """The slot whose content is never read."""
        return self.shape.num_rows * self.shape.num_columns

    @property
    def num_bytes(self) -> int:
        """The memory that the store holds, in bytes."""
        return sum(t.numel() * t.element_size() for held in self._by_slot() for t in held)

    def keep_stamps(self) -> None:
        """Notes from now on in which pass each slot was last written."""
        self.stamp = torch.full(self.keys[0].shape[:1], -1, dtype=torch.int32)
        self.stamp = self.stamp.to(self.keys[0].device)

    def age(self, num_keys: int) -> Tensor:
        """Returns how many passes ago the first slots of each row were written, (rows, K) int32.

        0: in the last pass. A slot that was never written is older than the first pass.
        """
        assert self.stamp is not None, "keep_stamps was not called"
        return self.num_passes - 1 - self._rows(self.stamp)[:, :num_keys]

    def slots(self, columns: Tensor) -> Tensor:
        """Returns the flat slots (B, q) int64 of canvas columns (B, q), scratch where they are -1.

        Fewer rows than the store has are every n-th of them.
        """
        first = self._slots[: self.shape.num_rows]
        first = first[:: self.shape.num_rows // columns.shape[0]].to(columns.device)
        return torch.where(columns < 0, self.scratch, first + columns)

    def begin(self, columns: Tensor) -> Tensor:
        """Begins a pass that stores columns (B, q); returns their slots (B, q) int64."""
        slots = self.slots(columns)
        self.weights.clear()
        self.change.clear()
        if self.stamp is not None:
            self.stamp.index_fill_(0, slots.flatten().to(self.stamp.device), self.num_passes)
            self.num_passes += 1
        return slots

    def write(
        self, layer: int, slots: Tensor, keys: Tensor, values: Tensor, num_keys: int
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, Q, H, D) at slots (B, q); returns views (B, K, H, D).

        Keys and values beyond the first q have no slot: they follow those of the store in what is
        returned.
        """
        rows, count = slots.shape
        flat = slots.flatten().to(self.keys[layer].device)
        views = []
        for stored, new in ((self.keys[layer], keys), (self.values[layer], values)):
            stored.index_copy_(0, flat, new[:, :count].flatten(0, 1))
            view = self.first_columns(stored, rows, num_keys)
            views.append(view if new.shape[1] == count else torch.cat([view, new[:, count:]], 1))
        return views[0], views[1]

    def exchange(self, layer: int, slots: Tensor, values: Tensor) -> Tensor:
        """Stores values (B, n, H, D) of a layer at slots (B, n); returns what was there."""
        stored = self.values[layer]
        old = stored[slots]
        stored.index_copy_(0, slots.flatten(), values.flatten(0, 1))
        return old

    def first_columns(self, stored: Tensor, num_rows: int, num_keys: int) -> Tensor:
        """Returns the first columns of a layer's keys or values, (num_rows, num_keys, H, D)."""
        return self._rows(stored)[:: self.shape.num_rows // num_rows, :num_keys]

    def copy_rows(self, source: Tensor) -> None:
        """Gives every row the content of row `source` (n,) int64.

        A store of several times n rows is treated as that many stores.
        """
        copies = torch.arange(self.shape.num_rows // source.shape[0], device=source.device)
        source = (source + copies[:, None] * source.shape[0]).flatten()
        for held in (
            *self._by_row(),
            *self.features.values(),
            *(kept for kept in self.kept if kept is not None),
        ):
            held.copy_(held[source.to(held.device)])

    def reseat(self, seats: Tensor, moved: tuple[int, ...], every: int = 1) -> None:
        """Has row i hold what row `seats[i]` (n,) int64 held, from now on for n rows alone.

        Counted are every so many rows. `moved` are the rows that hold another's: only these are
        copied. No memory is given back, and there is room for as many rows as at first.
        """
        rows, device = seats.shape[0] * every, seats.device
        beside = torch.arange(every, device=device)
        at = (seats[:, None] * every + beside).flatten()
        target = torch.tensor(moved, dtype=torch.int64, device=device)[:, None] * every + beside
        target = target.flatten()
        for held in self._by_row() if moved else ():
            into = target.to(held.device)
            held[into] = held[at.to(held.device)[into]]  # read before it is written
        self.features = {layer: held[at.to(held.device)] for layer, held in self.features.items()}
        self.kept = [None if held is None else held[at.to(held.device)] for held in self.kept]
        self.shape = replace(self.shape, num_rows=rows)
        for layers, whole in zip(self._by_slot(), self._all, strict=True):
            layers[:] = [one[: self.scratch + 1] for one in whole]

    def take_over(
        self, old: KVStore, rows: tuple[Tensor, Tensor], length: int, every: tuple[int, int]
    ) -> None:
        """Copies the first `length` columns of rows (n,) of `old` into as many of this store.

        Counted are every so many rows, of the old store and of this one, which may be the same.
        """
        source, target = rows
        for held, kept in zip(chain(*old._by_slot()), chain(*self._by_slot()), strict=True):
            own = old._rows(held)[:: every[0], :length]
            into = self._rows(kept)[:: every[1], :length]
            # Read before anything is written: both may be one store.
            into.index_copy_(0, target.to(into.device), own[source.to(own.device)])

    def mean_over_heads(self, mean: Tensor) -> Tensor:
        """Returns the mean over all heads of a network from that over the store's own."""
        return mean

    def all_heads(self, own: Tensor) -> Tensor:
        """Returns values (B, n, heads, D) of all heads of a network from those of the store's."""
        return own

    def keep(self, layer: int, visible: Tensor) -> None:
        """Notes which columns (B, K) bool a layer sees; fewer rows are every n-th of the store."""
        kept = self.kept[layer]
        if kept is None:
            size = (self.shape.num_rows, self.shape.num_columns)
            kept = self.kept[layer] = torch.ones(size, dtype=torch.bool, device=visible.device)
        stride = self.shape.num_rows // visible.shape[0]
        kept[::stride, : visible.shape[1]] = visible

    def kept_keys(self, layer: int, num_rows: int, num_keys: int) -> Tensor:
        """Returns which of the first columns a layer has chosen to see, (num_rows, K) bool."""
        kept = self.kept[layer]
        assert kept is not None, "no pass has chosen"
        return kept[:: self.shape.num_rows // num_rows, :num_keys]

    def _by_row(self) -> list[Tensor]:
        """Returns views (rows, columns, ...) of what is stored, and of its stamps."""
        stamps = () if self.stamp is None else (self.stamp,)
        return [self._rows(held) for held in (*chain(*self._by_slot()), *stamps)]

    def _by_slot(self) -> tuple[list[Tensor], ...]:
        """Returns the lists of what each layer holds, (slots, ...)."""
        return self.keys, self.values

    def _note_extent(self) -> None:
        """Keeps what has room for as many rows as there are now."""
        self._all = tuple(map(tuple, self._by_slot()))

    def _rows(self, held: Tensor) -> Tensor:
        return held[:-1].unflatten(0, (self.shape.num_rows, self.shape.num_columns))
