"""The processes that hold one network together, and the sums and joins between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

# A rank that ends is noticed at once, by its connections; this is for one that hangs.
_PATIENCE = timedelta(minutes=10)


class LostRankError(RuntimeError):
    """Another process of a tensor parallel network has ended or fails to answer."""


@dataclass(frozen=True)
class Group:
    """The own process among those that share a network."""

    rank: int
    size: int
    process_group: Any = field(compare=False, repr=False)

    @property
    def first(self) -> int:
        """The number of the group's first process among all processes."""
        return int(distributed.get_global_rank(self.process_group, 0))

    def part(self, total: int, rank: int | None = None) -> tuple[int, int]:
        """Returns the range of a rank, or of this one, of so many things; sizes differ by one."""
        rank = self.rank if rank is None else rank
        return rank * total // self.size, (rank + 1) * total // self.size

    def added_up(self, x: Tensor) -> Tensor:
        """Returns the sum of all ranks' tensors, in place, bit by bit the same on each."""
        x = x.contiguous()
        with lost():
            distributed.all_reduce(x, group=self.process_group)
        return x

    def joined(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors of all ranks, which have one shape, in the order of their ranks."""
        found = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
        with lost():
            distributed.all_gather(found, x.contiguous(), group=self.process_group)
        return tuple(found)


@contextmanager
def lost() -> Iterator[None]:
    """Raises LostRankError where a call between processes fails."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            "another process of this tensor parallel launch has ended or does not answer, so all "
            f"end; its own message says why. ({str(error).splitlines()[0]})"
        ) from error


def launched() -> tuple[int, int, int] | None:
    """Returns rank, number of processes, and rank on this machine, as torchrun says; else None."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return None
    rank = int(os.environ["RANK"])
    return rank, int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", rank))


def check_launch(count: int, option: str = "tensor_parallel") -> int:
    """Returns the own rank; raises ValueError unless so many processes were started together."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ValueError(f"{option}={count!r} must be at least 2 processes: leave it out for one")
    if not distributed.is_available():
        raise ValueError(f"{option}={count}: this torch comes without torch.distributed")
    if distributed.is_initialized():
        rank, size = distributed.get_rank(), distributed.get_world_size()
    else:
        found = launched()
        if found is None:
            raise ValueError(
                f"{option}={count} needs {count} processes, and this one was started alone: "
                f"torchrun --nproc-per-node {count} -m dllm ..., or load in each process of a "
                "torch.distributed group"
            )
        rank, size, _ = found
    if size != count:
        raise ValueError(
            f"{option}={count} and {size} processes were started: make both the same, as in "
            f"torchrun --nproc-per-node {count}, or give a process group of {count} as "
            "tensor_parallel"
        )
    return rank


def join(asked: Any, device: torch.device) -> Group:
    """Returns the group of so many processes, or of a `torch.distributed` process group.

    Begins `torch.distributed` where only torchrun has prepared it. Raises ValueError for a number
    that is not that of the processes.
    """
    if not isinstance(asked, int):
        if not isinstance(asked, distributed.ProcessGroup):
            raise TypeError(
                f"tensor_parallel={asked!r} is a {type(asked).__name__}: give the number of "
                "processes, or a torch.distributed process group"
            )
        return Group(asked.rank(), asked.size(), asked)
    check_launch(asked)
    if not distributed.is_initialized():
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        with lost():
            distributed.init_process_group(backend, timeout=_PATIENCE)
    return Group(distributed.get_rank(), asked, distributed.group.WORLD)


def own_device(device: torch.device | str | None) -> torch.device | str | None:
    """Returns the device of this process: its own GPU where none is named, or none by number."""
    found = launched()
    if found is None or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{found[2] % torch.cuda.device_count()}"
