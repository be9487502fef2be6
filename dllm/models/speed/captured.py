"""Passes captured once and replayed: a step costs one launch instead of hundreds."""

from __future__ import annotations

import copy
import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from dllm.models.model import Pass, is_plain
from dllm.models.speed.stores import StorePool
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape

_LOG = logging.getLogger(__name__)

GROUP = 64  # keys, and columns of a store: lengths of the same number of groups share passes
AT_ONCE = 128  # fed columns of all rows up to which a step is captured when it is first met

Work = Callable[[], None]


class CaptureError(RuntimeError):
    """Work that ran could not be captured."""


class Recorder(Protocol):
    """Does work and keeps how it is done."""

    def record(self, work: Work) -> Work:
        """Does the work; returns what does it again, on what is then in the same tensors.

        Raises CaptureError where it was done but cannot be kept.
        """
        ...


class CudaRecorder:
    """Captures work in CUDA graphs, which share the memory of what they compute on the way.

    That is safe although they run in any order: none leaves anything in that memory for another.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        """Does the work on a stream of its own, then captures it there."""
        with torch.cuda.device(self.device), self._aside():
            work()  # what is made at the first use, such as workspaces, must not be captured
            torch.cuda.synchronize()
            return self._capture(work)

    def _capture(self, work: Work) -> Work:
        # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache before
        # each capture: a tenth of a second, where a decoding captures several passes.
        graph = torch.cuda.CUDAGraph()
        try:
            with _no_collection():
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    work()
                except BaseException:
                    with suppress(RuntimeError):  # that the capture was broken off is known
                        graph.capture_end()
                    raise
                graph.capture_end()
        except RuntimeError as error:
            raise CaptureError(str(error).split("\n")[0]) from error
        return graph.replay

    @contextmanager
    def _aside(self) -> Iterator[None]:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            yield
        current.wait_stream(self.stream)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps tensors and graphs from being freed by chance, which breaks a capture off."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class PassKey:
    """All that decides what a captured pass does, besides what is in its inputs."""

    num_keys: int  # K
    inputs: tuple[tuple[int, ...] | None, ...]  # shapes, None where a pass has no such input
    memory: int | None  # of the store; None without one
    store: tuple[int, int] | None  # its rows and columns, which decide strides


@dataclass(frozen=True)
class Inputs:
    """The tensors of a pass."""

    tokens: Tensor  # (B, Q) int64
    positions: Tensor  # (B, Q) int64
    logit_rows: Tensor  # (B, w) int64
    attention_mask: Tensor | None  # (B, 1 or Q, K) bool
    stored: Tensor | None  # (B, q) int64

    @staticmethod
    def of(tokens: Tensor, plan: StepPlan) -> Inputs:
        """Returns what a pass gets."""
        return Inputs(tokens, plan.positions, plan.logit_rows, plan.attention_mask, plan.stored)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them, in one order."""
        return tuple(vars(self).values())

    def copies(self) -> Inputs:
        """Returns copies, into which other inputs of the same shapes can be written."""
        # Contiguous, as a copy of a plan's expanded tensors would not be.
        form = torch.contiguous_format
        copies = (None if t is None else t.clone(memory_format=form) for t in self.tensors)
        return Inputs(*copies)  # type: ignore[arg-type]

    def write(self, inputs: Inputs) -> None:
        """Takes over the content of other inputs."""
        for own, other in zip(self.tensors, inputs.tensors, strict=True):
            if own is not None and other is not None:
                own.copy_(other)

    def plan(self, like: StepPlan) -> StepPlan:
        """Returns a plan of a pass over these tensors."""
        return replace(
            like,
            positions=self.positions,
            logit_rows=self.logit_rows,
            attention_mask=self.attention_mask,
            stored=self.stored,
        )


@dataclass(frozen=True)
class _Captured:
    inputs: Inputs
    logits: Tensor  # (B, w, V)
    replay: Work


class Captured:
    """Runs passes of shapes that it has met before by replaying them.

    Steps that feed up to `at_once` columns in all are captured when they are first met, as they
    come again; of other passes, as wide as a text, the second one of a shape is. The `most` shapes
    used last are kept. Keys of the store are rounded up to whole groups, those in excess hidden, so
    that the length of a text makes no shape of its own. The K/V memory is that of the generation
    before (`StorePool`), because a captured pass writes and reads at fixed addresses. Stores from
    elsewhere and passes that do more than K/V (`is_plain`) run as they are.
    """

    reuses_features = False

    def __init__(
        self, run: Pass, recorder: Recorder, most: int = 64, at_once: int = AT_ONCE
    ) -> None:
        if most < 1:
            raise ValueError(f"most={most} captured passes must be at least 1")
        self.run, self.recorder, self.most, self.at_once = run, recorder, most, at_once
        self.stores = StorePool(self._forget)
        self.failed: str | None = None  # why nothing is captured any more
        self._captured: OrderedDict[PassKey, _Captured] = OrderedDict()
        self._met: OrderedDict[PassKey, None] = OrderedDict()
        self._logits: Tensor | None = None  # (n,) what all captured passes write into
        self._lock = Lock()

    @property
    def num_captured(self) -> int:
        """Number of captured passes."""
        return len(self._captured)

    def new_store(
        self, shape: StoreShape, dtype: torch.dtype, devices: Sequence[torch.device]
    ) -> KVStore:
        """Returns an empty store, in memory of a generation that is over if there is any."""
        shape = replace(shape, num_columns=_in_groups(shape.num_columns))
        return self.stores.take(shape, dtype, devices)

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns logits (B, w, V), which no later pass overwrites."""
        own, plan = plan, self._widened(plan, store)
        key = None if self.failed is not None else self._key(tokens, plan, store)
        if key is None:
            return self.run(tokens, own, store)
        with self._lock:
            captured, inputs = self._captured.get(key), Inputs.of(tokens, plan)
            if captured is None:
                return self._first(key, inputs, plan, store)
            self._captured.move_to_end(key)
            captured.inputs.write(inputs)
            captured.replay()
            return captured.logits.clone()

    def _widened(self, plan: StepPlan, store: KVStore | None) -> StepPlan:
        """Returns the plan over whole groups of keys, where the store has them."""
        num_keys = _in_groups(plan.num_keys)
        if store is None or plan.stored is None or num_keys == plan.num_keys:
            return plan
        return plan if num_keys > store.shape.num_columns else plan.with_keys(num_keys)

    def _key(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> PassKey | None:
        """Returns what a pass is kept by; None where it must run as it is."""
        if not is_plain(plan, store):
            return None
        tensors = Inputs.of(tokens, plan).tensors
        shapes = tuple(None if t is None else tuple(t.shape) for t in tensors)
        if store is None or plan.stored is None:
            return PassKey(plan.num_keys, shapes, None, None)
        memory = self.stores.number_of(store)
        if memory is None:
            return None
        extent = (store.shape.num_rows, store.shape.num_columns)
        return PassKey(plan.num_keys, shapes, memory, extent)

    def _first(self, key: PassKey, inputs: Inputs, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Runs a pass that is not captured yet, and captures it at once or at its second time."""
        again = plan.kind in ("step", "draft") and inputs.tokens.numel() <= self.at_once
        if key not in self._met and not again:
            self._met[key] = None
            while len(self._met) > 4 * self.most:
                self._met.popitem(last=False)
            return self.run(inputs.tokens, plan, store)
        try:
            captured = self._record(inputs.copies(), plan, store)
        except CaptureError as error:
            self._give_up(str(error))
            return self.run(inputs.tokens, plan, store)
        self._met.pop(key, None)
        self._captured[key] = captured
        while len(self._captured) > self.most:
            self._captured.popitem(last=False)
        return captured.logits.clone()

    def _record(self, inputs: Inputs, plan: StepPlan, store: KVStore | None) -> _Captured:
        rows, width = inputs.logit_rows.shape
        own_plan = inputs.plan(plan)
        # A store of its own over the same memory: who keeps the work must not keep the store.
        own_store = copy.copy(store)
        out: list[Tensor] = []

        def work() -> None:
            logits = self.run(inputs.tokens, own_plan, own_store)
            if not out:
                out.append(self._room(rows * width * logits.shape[-1], logits).view_as(logits))
            out[0].copy_(logits)

        return _Captured(inputs, replay=self.recorder.record(work), logits=out[0])

    def _room(self, size: int, like: Tensor) -> Tensor:
        """Returns the first `size` elements of the output that all captured passes share.

        One for all, as each would hold as much memory as all others together need.
        """
        if self._logits is None or self._logits.numel() < size:
            self._logits = like.new_empty(size)
        return self._logits[:size]

    def _forget(self, memory: int) -> None:
        """Drops what was captured over memory that is given up."""
        for passes in (self._captured, self._met):
            for key in [key for key in passes if key.memory == memory]:
                del passes[key]

    def _give_up(self, why: str) -> None:
        self.failed = why
        self._captured.clear()
        _LOG.warning("passes are not captured, and run one by one from now on: %s", why)


def _in_groups(count: int) -> int:
    return -(-count // GROUP) * GROUP
