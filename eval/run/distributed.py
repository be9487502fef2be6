"""One run by several processes: each decodes a part, the main one puts them together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.eval.run.environment import environment_of
from dllm.eval.run.errors import KINDS, Failure
from dllm.eval.run.record import RunRecord, begun, note
from dllm.eval.run.results import Result
from dllm.eval.run.resume import kept, left_of
from dllm.eval.run.shards import Tail, absorb, shard_of, split
from dllm.eval.run.writer import Writer, writing
from dllm.eval.tasks.task import Problem

if TYPE_CHECKING:
    from dllm.eval.run.run import Run

_PAUSE = 0.2  # seconds between two looks at what the others have done


@dataclass(frozen=True)
class Plan:
    """Who decodes what."""

    start: str
    parts: tuple[tuple[str, ...], ...]  # ids of the problems of each process


def results(run: Run, problems: Sequence[Problem], output: Path | None) -> Iterator[Result]:
    """Yields all results in the main process, in the others those of their part.

    A process that ends makes the others raise LostProcessError; the part files stay, and the next
    start takes them over, with any number of processes. An error of one ends the run in all of
    them, once the others are through with their parts.
    """
    if output is None:
        raise ValueError(
            f"{run.processes.count} processes need --output FILE, beside which each writes its part"
        )
    if run.processes.is_main:
        yield from _lead(run, problems, output)
    else:
        yield from _follow(run, problems, output)


def _lead(run: Run, problems: Sequence[Problem], output: Path) -> Iterator[Result]:
    processes = run.processes
    fresh = run.record(problems, processes.share(environment_of(run.model)))
    with ExitStack() as held:
        try:
            writer = held.enter_context(writing(output))
            plan = _plan(run, problems, writer, fresh)
        except (ValueError, OSError) as error:
            processes.tell(Failure.of(error))
            raise
        processes.tell(plan)
        yield from kept(run, problems, writer)
        own = _Part(run, plan, problems, output)
        yield from _gathered(own)
        failures = processes.share(own.failure)
        absorb(writer, problems)
    _raise_first(failures, own)


def _plan(run: Run, problems: Sequence[Problem], writer: Writer, fresh: RunRecord) -> Plan:
    """Takes over what earlier starts left and returns who decodes the rest."""
    left = left_of(run, problems, writer)
    if left:
        note(writer.path, run.name, begun(writer.path, run.name, fresh))
    parts = split(left, run.processes.count)
    return Plan(fresh.starts[0].id, tuple(tuple(p.id for p in part) for part in parts))


def _gathered(own: _Part) -> Iterator[Result]:
    """Yields the main process's results and those of the others as they come, until all is done."""
    processes = own.run.processes
    tail = Tail(shard_of(own.output, rank) for rank in range(1, processes.count))
    for result in own.results():
        yield result
        yield from tail.new()
    for _ in processes.meet():
        yield from tail.new()
        time.sleep(_PAUSE)
    yield from tail.new()


def _follow(run: Run, problems: Sequence[Problem], output: Path) -> Iterator[Result]:
    processes = run.processes
    processes.share(environment_of(run.model))
    plan = processes.tell(None)
    if isinstance(plan, Failure):
        raise plan.as_error()
    own = _Part(run, plan, problems, output)
    yield from own.results()
    for _ in processes.meet():
        time.sleep(_PAUSE)
    _raise_first(processes.share(own.failure), own)


class _Part:
    """What this process decodes, into a file of its own; an error is kept for the others."""

    def __init__(self, run: Run, plan: Plan, problems: Sequence[Problem], output: Path) -> None:
        self.run, self.start = run, plan.start
        own = set(plan.parts[run.processes.rank])
        self.problems = [problem for problem in problems if problem.id in own]
        self.output, self.shard = output, shard_of(output, run.processes.rank)
        self.error: Exception | None = None

    @property
    def failure(self) -> Failure | None:
        """What the others are told."""
        return None if self.error is None else Failure.of(self.error)

    def results(self) -> Iterator[Result]:
        """Yields the results of this part; after an error, those of before it."""
        try:
            with writing(self.shard) as writer:
                for results in self.run.batches(self.problems):
                    stamped = [replace(result, start=self.start) for result in results]
                    writer.append(stamped)
                    yield from stamped
        except tuple(KINDS.values()) as error:
            self.error = error


def _raise_first(failures: Sequence[Any], own: _Part) -> None:
    if own.error is not None:
        raise own.error
    for failure in failures:
        if failure is not None:
            raise failure.as_error()
