"""One rank decodes and the others follow: they run its passes, and know of nothing else.

So whatever decides between two passes (a request that comes or is cancelled, a deadline, a seed, a
file that is there already) is decided once, on the first rank, and its code is that of one process.
Sizes travel over gloo and tensors over the group of their device, so that nothing waits for a GPU.
"""

from __future__ import annotations

import atexit
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, distributed

from dllm.models.model import HostedModel
from dllm.models.parallel.group import Group, LostRankError, lost
from dllm.models.parallel.running import Sharded, ShardedStore
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape

_BEAT = 5.0  # seconds after which followers hear that the first rank is still there
_SILENCE = timedelta(seconds=60)  # after which they take it for lost
_LOADING = timedelta(minutes=30)  # for the slowest to read its weights
_FOLLOWS = (
    "this process is not the first of its tensor parallel launch: it runs the passes of the first "
    "in dllm.models.parallel.follow(model), and only the first generates"
)
_WIDE = 8  # bytes: tensors that travel together begin at multiples, as their views must


@dataclass(frozen=True)
class _Order:
    """What followers are to do, with the tensors of `parts`."""

    kind: str  # pass, store, copy, take, reseat, stamps, wait, end
    parts: tuple[Any, ...] = ()
    dropped: tuple[int, ...] = ()  # stores that nobody has any more


class _Wire:
    """Carries orders from the first rank to the others."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self.group, self.device = group, device
        ranks = distributed.get_process_group_ranks(group.process_group)
        with lost():
            self.words = distributed.new_group(ranks, timeout=_SILENCE, backend="gloo")
            distributed.monitored_barrier(self.words, timeout=_LOADING)

    def send(self, order: _Order) -> None:
        """Sends an order to all others."""
        tensors: list[Tensor] = []
        file = io.BytesIO()
        _Pickler(file, tensors).dump(order)
        sizes = [(t.device.type, t.dtype, tuple(t.shape)) for t in tensors]
        text = pickle.dumps((file.getvalue(), sizes))
        with lost():
            self._give(torch.tensor([len(text)]), self.words)
            self._give(torch.frombuffer(bytearray(text), dtype=torch.uint8), self.words)
            for kind in ("cpu", self.device.type)[: 1 + (self.device.type != "cpu")]:
                packed = [_bytes_of(t) for t in tensors if t.device.type == kind]
                if packed:
                    self._give(torch.cat(packed), self.group.process_group)

    def receive(self) -> _Order:
        """Returns the next order, as soon as it is there."""
        with lost():
            size = self._give(torch.zeros(1, dtype=torch.int64), self.words)
            text = self._give(torch.empty(int(size), dtype=torch.uint8), self.words)
            # Written by the first rank of this launch, on whose orders this process runs anyway.
            body, sizes = pickle.loads(bytes(text.tolist()))
            tensors: list[Any] = [None] * len(sizes)
            for kind in ("cpu", self.device.type)[: 1 + (self.device.type != "cpu")]:
                places = [place for place, size in enumerate(sizes) if size[0] == kind]
                ends = [_num_bytes(*sizes[place][1:]) for place in places]
                if not places:
                    continue
                device = self.device if kind == self.device.type else torch.device("cpu")
                flat = torch.empty(sum(ends), dtype=torch.uint8, device=device)
                self._give(flat, self.group.process_group)
                for place, part in zip(places, flat.split(ends), strict=True):
                    tensors[place] = _tensor_of(part, *sizes[place][1:])
        order: _Order = _Unpickler(io.BytesIO(body), tensors).load()
        return order

    def _give(self, tensor: Tensor, over: Any) -> Tensor:
        distributed.broadcast(tensor, src=self.group.first, group=over)
        return tensor


def _num_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    count = torch.Size(shape).numel() * dtype.itemsize
    return -(-count // _WIDE) * _WIDE


def _bytes_of(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    room = _num_bytes(tensor.dtype, tuple(tensor.shape)) - len(flat)
    return torch.nn.functional.pad(flat, (0, room))


def _tensor_of(part: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return part[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and their numbers in their places."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self.tensors[pid]


class _LedStore(ShardedStore):
    """The first rank's store: what happens to it between passes happens to the others' too."""

    def __init__(self, leading: Leading, number: int, *given: Any) -> None:
        super().__init__(*given)
        self.leading, self.number = leading, number

    def copy_rows(self, source: Tensor) -> None:
        with self.leading.ordering("copy", self.number, source):
            super().copy_rows(source)

    def take_over(
        self, old: KVStore, rows: tuple[Tensor, Tensor], length: int, every: tuple[int, int]
    ) -> None:
        assert isinstance(old, _LedStore)
        with self.leading.ordering("take", self.number, old.number, rows, length, every):
            super().take_over(old, rows, length, every)

    def reseat(self, seats: Tensor, moved: tuple[int, ...], every: int = 1) -> None:
        with self.leading.ordering("reseat", self.number, seats, moved, every):
            super().reseat(seats, moved, every)

    def keep_stamps(self) -> None:
        with self.leading.ordering("stamps", self.number):
            super().keep_stamps()


class Leading:
    """Runs passes on this rank and has the others run them; `end` lets these go.

    `on_lost` is called, from whichever thread notices, once a rank is lost or fails in a pass:
    ranks then wait for each other, so there is no going on.
    """

    reuses_features = True

    def __init__(self, sharded: Sharded, device: torch.device) -> None:
        self.sharded, self._wire = sharded, _Wire(sharded.group, device)
        self.on_lost: Callable[[Exception], None] | None = None
        self._lock, self._over, self._failed = Lock(), Event(), False
        self._made, self._dropped = 0, list[int]()
        self._busy = Event()  # an order was sent since the last beat
        Thread(target=self._beat, name="dllm-beat", daemon=True).start()
        atexit.register(self.end)

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store, of which every rank has its part."""
        self._made += 1
        own = self.sharded.own(shape)
        with self.ordering("store", self._made, own, dtype, len(devices)):
            store = _LedStore(self, self._made, own, dtype, devices, self.sharded.group)
        finalize(store, self._dropped.append, self._made)
        return store

    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V)."""
        number = store.number if isinstance(store, _LedStore) else None
        with self.ordering("pass", tokens, plan, number):
            return self.sharded(tokens, plan, store)

    def end(self) -> None:
        """Lets the followers go, who return from `follow`."""
        if not self._over.is_set() and not self._failed:
            with self.ordering("end"):
                self._over.set()

    @contextmanager
    def ordering(self, kind: str, *parts: Any) -> Iterator[None]:
        """Sends an order, and waits for nobody while this rank does the same."""
        with self._lock:
            if self._failed:
                raise LostRankError("a process of this tensor parallel launch was lost before")
            self._failed = True  # until all went well, Ctrl-C included
            count = len(self._dropped)
            dropped, self._dropped[:count] = tuple(self._dropped[:count]), []
            try:
                self._busy.set()
                self._wire.send(_Order(kind, parts, dropped))
                yield
            except Exception as error:
                if self.on_lost is not None:
                    self.on_lost(error)
                if isinstance(error, LostRankError):
                    raise
                raise LostRankError(f"a pass failed on the first rank: {error}") from error
            self._failed = False

    def _beat(self) -> None:
        while not self._over.wait(_BEAT):
            if self._failed:
                return
            if not self._busy.is_set():
                try:
                    with self.ordering("wait"):
                        pass
                except LostRankError:
                    return  # `on_lost` was told, and the next pass fails
            self._busy.clear()


class Following(Sharded):
    """Runs no pass but in `follow`: what one of these ranks did alone, others would wait for."""

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Raises RuntimeError."""
        raise RuntimeError(_FOLLOWS)

    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Raises RuntimeError."""
        raise RuntimeError(_FOLLOWS)


@torch.inference_mode()
def follow(model: HostedModel) -> None:
    """Runs the passes of the first rank until it ends them; raises LostRankError if it is lost."""
    if not isinstance(model.runner, Following):
        raise ValueError(
            f"{model.name!r} follows nobody: only processes behind the first of a tensor parallel "
            "launch do"
        )
    sharded, stores = Sharded(model.network, model.runner.group), dict[int, KVStore]()
    wire = _Wire(sharded.group, model.device)
    while (order := wire.receive()).kind != "end":
        for number in order.dropped:
            del stores[number]
        _obey(order, sharded, stores, model.device)


def _obey(
    order: _Order, sharded: Sharded, stores: dict[int, KVStore], device: torch.device
) -> None:
    """Does on this rank what the first one does."""
    if order.kind == "pass":
        tokens, plan, number = order.parts
        sharded(tokens, plan, None if number is None else stores[number])
    elif order.kind == "store":
        number, shape, dtype, layers = order.parts
        stores[number] = ShardedStore(shape, dtype, [device] * layers, sharded.group)
    elif order.kind == "copy":
        number, source = order.parts
        stores[number].copy_rows(source)
    elif order.kind == "reseat":
        number, *rest = order.parts
        stores[number].reseat(*rest)
    elif order.kind == "stamps":
        stores[order.parts[0]].keep_stamps()
    elif order.kind == "take":
        number, old, *rest = order.parts
        stores[number].take_over(stores[old], *rest)
