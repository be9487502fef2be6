"""Runs a model over problems, writes each answer as it comes, resumes after a kill.

One process writes the results file; of several each decodes a part into a file of its own, and the
main one puts them together.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from dllm.eval.run import execute
from dllm.eval.run.describe import Setup
from dllm.eval.run.processes import FAILURES, Tail, absorb, by_length, shard_of, split, told
from dllm.eval.run.record import Environment, RunRecord, Start, begun, environment_of, note, now
from dllm.eval.run.results import Result, Writer, read_results, writing
from dllm.eval.tasks.task import Problem

# Problems decoded in one call, so that what is kept of all of them stays small: 22 bytes a column.
_TOGETHER = 1024
_PAUSE = 0.2  # seconds between two looks at what the others have done


@dataclass(frozen=True)
class Run(Setup):
    """A setup that is carried out: by one process, or by several that share its problems."""

    def record(
        self, problems: Sequence[Problem], processes: Sequence[Environment] = ()
    ) -> RunRecord:
        """Returns what is the same for all results that this run makes from now on."""
        digest = hashlib.sha256(repr(problems).encode()).hexdigest()[:16]
        made_by = tuple(processes) or (environment_of(self.model),)
        rows, continuous = self.num_rows, self.continuous
        start = Start(secrets.token_hex(4), now(), rows, digest, made_by, continuous)
        notes = {"description": self.task.description, **self.task.notes}
        return RunRecord(self.describe(), notes, (start,))

    def results(self, problems: Sequence[Problem], output: Path | None) -> Iterator[Result]:
        """Yields a result for each problem, first those that `output` already holds.

        Each new one is written and flushed to disk as soon as its row is finished, before it is
        yielded, so a run that is killed goes on with the same command and repeats nothing that was
        finished. Raises RefusedError when the settings cannot decode the problems,
        NotEnoughMemoryError when so many rows do not fit; fewer go on where it stopped. Of several
        processes the main one yields all, the others what they decode themselves.
        """
        if self.processes.count == 1 and output is None:
            for batch in self.batches(problems):
                yield from batch
        elif output is None:
            raise ValueError(
                f"{self.processes.count} processes need --output FILE, beside which each writes "
                "its part"
            )
        elif self.processes.count == 1:
            yield from _alone(self, problems, output)
        elif self.processes.is_main:
            yield from _lead(self, problems, output)
        else:
            yield from _follow(self, problems, output)

    def batches(self, problems: Sequence[Problem]) -> Iterator[list[Result]]:
        """Yields the results of the rows that one step finished, shortest prompts first.

        When memory runs out, or on Ctrl-C, the rows under way are lost and no others.
        """
        left, size = by_length(problems), _TOGETHER if self.continuous else self.num_rows
        for start in range(0, len(left), size):
            yield from execute.results(self, left[start : start + size])


@dataclass(frozen=True)
class Plan:
    """The problems of each process, as the main one shares them out."""

    start: str
    parts: tuple[tuple[str, ...], ...]  # ids


def _alone(run: Run, problems: Sequence[Problem], output: Path) -> Iterator[Result]:
    """Yields the results that are there, then new ones, each as soon as it is on the disk."""
    with writing(output) as writer:
        left = _left(run, problems, writer)
        fresh = run.record(problems)
        record = begun(output, run.name, fresh) if left else fresh
        yield from _known(run, problems, writer)
        for number, batch in enumerate(run.batches(left)):
            if number == 0:  # a run that is refused leaves no file
                note(output, run.name, record)
            yield from _written(batch, fresh.starts[0].id, writer)


def _left(run: Run, problems: Sequence[Problem], writer: Writer) -> list[Problem]:
    """Returns what is left to do, with what killed processes left beside the file taken over."""
    absorb(writer, problems)
    done = read_results(writer.path, run.name)
    return [problem for problem in problems if problem.id not in done]


def _known(run: Run, problems: Sequence[Problem], writer: Writer) -> Iterator[Result]:
    """Yields results that are there, with a new line for those that can be scored only now."""
    done = read_results(writer.path, run.name)
    for problem in problems:
        if problem.id in done:
            result = done[problem.id]
            if result.correct is None and run.task.scored:
                result = execute.scored(run.task, problem, result)
                writer.append([result])
            yield result


def _written(batch: Iterable[Result], start: str, writer: Writer) -> Iterator[Result]:
    stamped = [replace(result, start=start) for result in batch]
    writer.append(stamped)
    yield from stamped


def _lead(run: Run, problems: Sequence[Problem], output: Path) -> Iterator[Result]:
    """Yields all results, in the process that plans and merges.

    A process that ends makes the others raise LostProcessError; the part files stay, and the next
    start takes them over, with any number of processes. An error of one ends the run in all of
    them, once the others are through with their parts.
    """
    processes = run.processes
    fresh = run.record(problems, processes.share(environment_of(run.model)))
    with ExitStack() as stack:
        try:
            writer = stack.enter_context(writing(output))
            left = _left(run, problems, writer)
            if left:
                note(output, run.name, begun(output, run.name, fresh))
        except (ValueError, OSError) as error:
            processes.tell(told(error))
            raise
        parts = (tuple(p.id for p in part) for part in split(left, processes.count))
        plan = Plan(fresh.starts[0].id, tuple(parts))
        processes.tell(plan)
        yield from _known(run, problems, writer)
        own = _Part(run, plan, problems, output)
        yield from _gathered(own)
        failures = own.failures()
        absorb(writer, problems)
    _raise_first(failures)


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
    """Yields the results of this process's part."""
    processes = run.processes
    processes.share(environment_of(run.model))
    plan = processes.tell(None)
    if isinstance(plan, Exception):
        raise plan
    own = _Part(run, plan, problems, output)
    yield from own.results()
    for _ in processes.meet():
        time.sleep(_PAUSE)
    _raise_first(own.failures())


class _Part:
    """The part of this process, with a file of its own; an error waits for the others."""

    def __init__(self, run: Run, plan: Plan, problems: Sequence[Problem], output: Path) -> None:
        self.run, self.start = run, plan.start
        own = set(plan.parts[run.processes.rank])
        self.problems = [problem for problem in problems if problem.id in own]
        self.output, self.shard = output, shard_of(output, run.processes.rank)
        self.error: Exception | None = None

    def results(self) -> Iterator[Result]:
        """Yields the results of this part; after an error, those of before it."""
        try:
            with writing(self.shard) as writer:
                for batch in self.run.batches(self.problems):
                    yield from _written(batch, self.start, writer)
        except FAILURES as error:
            self.error = error

    def failures(self) -> list[Exception | None]:
        """Returns this process's error, then those of all, once every process is through."""
        message = None if self.error is None else told(self.error)
        return [self.error, *self.run.processes.share(message)]


def _raise_first(failures: Sequence[Exception | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure
