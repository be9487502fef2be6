"""K/V memory that is used again, so that what was captured over it stays valid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from dllm.state.store import KVStore, StoreShape

_ROOM = 256  # slots: memory is made in multiples, so that a slightly longer prompt still fits


@dataclass(frozen=True)
class _Kind:
    """What memory must have in common with a store besides the number of slots."""

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    devices: tuple[torch.device, ...]  # of each layer

    def make(self, num_slots: int) -> list[Tensor]:
        size = (num_slots, self.num_kv_heads, self.head_dim)
        return [torch.zeros(size, dtype=self.dtype, device=device) for device in self.devices]


@dataclass
class _Memory:
    """The tensors of one store after another; `holder` is the one that has them now."""

    number: int
    kind: _Kind
    keys: list[Tensor]  # of each layer (slots, H, D)
    values: list[Tensor]
    holder: Callable[[], KVStore | None]

    @property
    def free(self) -> bool:
        return self.holder() is None

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[0]


class StorePool:
    """Gives a generation the K/V memory of one that is over.

    A store is over when nobody refers to it; two generations at the same time have memory of their
    own. Free memory stays until a store does not fit into it; `drop` then gets its number.
    """

    def __init__(self, drop: Callable[[int], None]) -> None:
        self._drop = drop
        self._memories: list[_Memory] = []
        self._numbers: WeakKeyDictionary[KVStore, int] = WeakKeyDictionary()
        self._made = 0

    def number_of(self, store: KVStore) -> int | None:
        """Returns the number of a store's memory; None if the store is not from here."""
        return self._numbers.get(store)

    @torch.inference_mode()
    def take(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store."""
        kind = _Kind(shape.num_kv_heads, shape.head_dim, dtype, tuple(devices))
        num_slots = shape.num_rows * shape.num_columns + 1
        memory = self._find(num_slots, kind)
        if memory is None:
            self._give_up()  # first, so that old and new are not there together
            memory = self._make(num_slots, kind)
        store = KVStore.over(shape, memory.keys, memory.values)
        memory.holder = ref(store)
        self._numbers[store] = memory.number
        return store

    def _find(self, num_slots: int, kind: _Kind) -> _Memory | None:
        fitting = (m for m in self._memories if m.free and m.kind == kind)
        return next((m for m in fitting if m.num_slots >= num_slots), None)

    def _give_up(self) -> None:
        for memory in [m for m in self._memories if m.free]:
            self._memories.remove(memory)
            self._drop(memory.number)

    def _make(self, num_slots: int, kind: _Kind) -> _Memory:
        room = -(-num_slots // _ROOM) * _ROOM
        self._made += 1
        memory = _Memory(self._made, kind, kind.make(room), kind.make(room), _nobody)
        self._memories.append(memory)
        return memory


def _nobody() -> None:
    return None
