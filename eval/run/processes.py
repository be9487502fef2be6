"""The processes that share an evaluation: their messages, their errors and their part files."""

from __future__ import annotations

import atexit
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.run.record import beside
from dllm.eval.run.results import (
    LostProcessError,
    RefusedError,
    Result,
    Writer,
    parse_result,
    read_lines,
    set_aside,
    writing,
)
from dllm.eval.tasks.task import Problem

_TO_START = timedelta(minutes=10)
# Parts of a run take hours and are not equally long. A process that ends is noticed at once all the
# same, by its connections.
_TO_FINISH = timedelta(days=30)
# Errors that end a run in all processes.
FAILURES = (RefusedError, NotEnoughMemoryError, BrokenLogitsError, ValueError, OSError)


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
        """Returns the device of this process: the one that is named, else one of its own."""
        if asked is None and self.count > 1 and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return asked

    def tell(self, message: Any) -> Any:
        """Returns the main process's message."""
        box = [message]
        if self.count > 1:
            with _lost():
                distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def share(self, message: Any) -> list[Any]:
        """Returns the messages of all processes in the order of their ranks."""
        found = [message] * self.count
        if self.count > 1:
            with _lost():
                distributed.all_gather_object(found, message, group=self.group)
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


def _part() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


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
        # Its threads must be over before the interpreter is: else, now and then, the process is
        # aborted ("terminate called without an active exception") after all of its work.
        atexit.register(_part)
    group = distributed.new_group(backend="gloo", timeout=_TO_FINISH)
    return Processes(int(rank), count, int(os.environ.get("LOCAL_RANK", rank)), group)


def told(error: Exception) -> Exception:
    """Returns an error as others can be told of it: of the nearest of `FAILURES`, by its message.

    So all of them end a run the same way.
    """
    kind = next(base for base in type(error).__mro__ if base in FAILURES)
    made: Exception = kind(str(error))
    return made


def shard_of(output: Path, rank: int) -> Path:
    """Returns where a process writes: `rows.jsonl.part0` and so on."""
    return output.with_name(f"{output.name}.part{rank}")


def find_shards(output: Path) -> list[Path]:
    """Returns the part files that are there, of whichever launch."""
    found = output.parent.glob(f"{glob.escape(output.name)}.part*")
    return sorted(path for path in found if path.suffix.removeprefix(".part").isdigit())


def set_all_aside(output: Path) -> Path | None:
    """Renames a results file, its part files and its record; returns the new name of the first.

    None where there was none. Raises BusyError if another process writes one of them.
    """
    for shard in find_shards(output):
        set_aside(shard)
    set_aside(beside(output))
    return set_aside(output)


def absorb(writer: Writer, problems: Sequence[Problem]) -> None:
    """Moves the lines of all part files into the results file, those of short prompts first.

    A kill at any moment loses nothing: a part file goes when its lines are on the disk, and lines
    that are there already do not come twice. Raises BusyError if a process still writes one.
    """
    shards = find_shards(writer.path)
    if not shards:
        return
    with ExitStack() as open_shards:
        parts = [open_shards.enter_context(writing(shard)) for shard in shards]
        there = {(result.run, result.id) for result in read_lines(writer.path)}
        found = {(r.run, r.id): r for shard in shards for r in read_lines(shard)}
        new = [result for key, result in found.items() if key not in there]
        order = {problem.id: number for number, problem in enumerate(problems)}
        if new:
            writer.append(sorted(new, key=lambda r: (r.run, len(r.prompt), order.get(r.id, -1))))
        for part in parts:
            part.remove()


def by_length(problems: Iterable[Problem]) -> list[Problem]:
    """Returns problems with the shortest prompts first: a pass costs what its longest row does."""
    return sorted(problems, key=lambda problem: len(problem.prompt))


def split(problems: Sequence[Problem], count: int) -> list[list[Problem]]:
    """Returns a part for each process; every one has prompts of all lengths."""
    ordered = by_length(problems)
    return [ordered[rank::count] for rank in range(count)]


class Tail:
    """Reads what other processes add to their part files."""

    def __init__(self, shards: Iterable[Path]) -> None:
        self._read = dict.fromkeys(shards, 0)  # bytes of each

    def new(self) -> list[Result]:
        """Returns the results that have come since the last call."""
        found: list[Result] = []
        for shard, start in self._read.items():
            if shard.exists():
                with shard.open("rb") as file:
                    file.seek(start)
                    whole = file.read().rpartition(b"\n")[0]
                if whole:
                    self._read[shard] = start + len(whole) + 1
                    found += map(parse_result, whole.split(b"\n"))
        return found
