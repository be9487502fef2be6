"""The processes that share an evaluation: what they tell each other, and that one has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

_TO_START = timedelta(minutes=10)
# Parts of a run take hours and are not equally long. A process that ends is noticed at once all the
# same, by its connections.
_TO_FINISH = timedelta(days=30)


class LostProcessError(ConnectionError):
    """Another process of the launch ended before its part was done."""


@dataclass(frozen=True)
class Processes:
    """The own process among those that share the problems; alone unless a launcher started more.

    All calls are collective. Small objects travel over gloo, whatever the devices are. Each call
    raises LostProcessError when a process has ended.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine
    group: Any = field(default=None, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process plans, merges and prints."""
        return self.rank == 0

    def device(self, asked: str | None) -> str | None:
        """Returns the device of this process: what is asked for, else one of its own."""
        if asked is None and self.count > 1 and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return asked

    def tell(self, given: Any) -> Any:
        """Returns what the main process gives."""
        box = [given]
        if self.count > 1:
            with _lost():
                distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def share(self, given: Any) -> list[Any]:
        """Returns what every process gives, in the order of their ranks."""
        found = [given] * self.count
        if self.count > 1:
            with _lost():
                distributed.all_gather_object(found, given, group=self.group)
        return found

    def meet(self) -> Iterator[None]:
        """Yields until every process has come here too; the caller waits in between."""
        if self.count == 1:
            return
        with _lost():
            meeting = distributed.barrier(group=self.group, async_op=True)
        while not meeting.is_completed():
            yield
        with _lost():
            meeting.wait()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this launch ended before its part was done. What was finished is "
            f"kept, and the same command goes on; its own message says why it ended. ({error})"
        ) from None


def find_processes() -> Processes:
    """Returns the processes that `torchrun` or `accelerate launch` started, or this one alone."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK")
    if count <= 1 or rank is None:
        return Processes()
    if not distributed.is_available():
        raise ValueError(
            f"WORLD_SIZE={count}, but this torch has no torch.distributed: start one process"
        )
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_TO_START)
    group = distributed.new_group(backend="gloo", timeout=_TO_FINISH)
    return Processes(int(rank), count, int(os.environ.get("LOCAL_RANK", rank)), group)
