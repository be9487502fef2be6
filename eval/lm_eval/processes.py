"""The processes of a data-parallel run of the lm-evaluation-harness."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes that share the requests: one, unless a launcher started more."""

    accelerator: Any = None  # accelerate's, None for a single process

    @property
    def rank(self) -> int:
        """The number of this process."""
        return 0 if self.accelerator is None else int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return 1 if self.accelerator is None else int(self.accelerator.num_processes)

    def device(self, asked: str | None) -> str | None:
        """Returns the device of this process: its own among several, else what is asked for."""
        return asked if self.accelerator is None else str(self.accelerator.device)

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns the tensors of all processes in one."""
        if self.accelerator is None:
            return tensor
        gathered: Tensor = self.accelerator.gather(tensor)
        return gathered

    def gather_objects(self, given: Any, to: int) -> list[Any] | None:
        """Returns the objects of all processes on process `to`, None on the others."""
        if self.accelerator is None:
            return [given]
        found: list[Any] | None = [None] * self.count if self.rank == to else None
        torch.distributed.gather_object(given, found, dst=to)
        return found

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def find_processes() -> Processes:
    """Returns the processes that `accelerate launch` or `torchrun` started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    return Processes(Accelerator(cpu=not torch.cuda.is_available()))
