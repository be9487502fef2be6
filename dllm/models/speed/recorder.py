"""Records work on a CUDA device once, so that it can be done again with one launch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch

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
