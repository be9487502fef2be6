"""Runs a model over problems, writes each answer as it comes, resumes after a kill.

One process writes the results file; of several each decodes a part into a file of its own, and the
main one puts them together.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from dllm.eval.run import execute
from dllm.eval.run.describe import ORIGIN, Setup
from dllm.eval.run.processes import (
    FAILURES,
    Tail,
    absorb,
    by_length,
    find_shards,
    set_all_aside,
    shard_of,
    split,
    told,
)
from dllm.eval.run.record import Environment, RunRecord, Start, begun, environment_of, note, now
from dllm.eval.run.results import Result, Writer, read_lines, read_results, writing
from dllm.eval.tasks.task import Problem

# Problems decoded in one call, so that what is kept of all of them stays small: 22 bytes a column.
_TOGETHER = 1024
_WAY_OUT = (
    "start anew with --fresh (fresh=True), which keeps it as .old, or choose another --output"
)
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

    def there(self, problems: Sequence[Problem], output: Path | None) -> int:
        """Returns how many of the problems a results file, or its parts, already has answers to."""
        if output is None:
            return 0
        lines = chain.from_iterable(map(read_lines, (output, *find_shards(output))))
        name = self.name
        ids = {result.id for result in lines if result.run == name}
        return sum(problem.id in ids for problem in problems)

    def beside(self, output: Path) -> list[str]:
        """Returns the other runs of this setting in a file: of other code, another checkpoint."""
        described, name = self.describe(), self.name
        return [other for other in _alike(described, output) if other != name]

    def results(
        self, problems: Sequence[Problem], output: Path | None, *, fresh: bool = False
    ) -> Iterator[Result]:
        """Yields a result for each problem, first those that `output` already holds.

        With `fresh` there are none: a file that is there is renamed to NAME.old, and kept. Results
        of this setting that another version of dllm made, or one before code and checkpoints were
        recorded, are a ValueError: they are neither taken over nor mixed with new ones.

        Each new one is written and flushed to disk as soon as its row is finished, before it is
        yielded, so a run that is killed goes on with the same command and repeats nothing that was
        finished. Raises RefusedError when the settings cannot decode the problems,
        NotEnoughMemoryError when so many rows do not fit; fewer go on where it stopped. Of several
        processes the main one yields all, the others what they decode themselves.
        """
        # What the run is called stands from here on, whatever becomes of the objects it has.
        run = replace(self)
        run.check(problems)
        if fresh and output is not None and self.processes.is_main:
            set_all_aside(output)
        yield from run._results(problems, output)

    def _results(self, problems: Sequence[Problem], output: Path | None) -> Iterator[Result]:
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
        left, size = by_length(problems), _TOGETHER if self.waits else self.num_rows
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


def check_origin(described: Mapping[str, Any], name: str, output: Path) -> None:
    """Raises ValueError if another version made results of this very setting in a file.

    What was made by another rule, or with another checkpoint, is a run of its own beside it.
    """
    for other, settings in _alike(described, output).items():
        version = settings.get("version")
        if other != name and version != described["version"]:
            by = "a version that kept no record of its code and checkpoint"
            raise ValueError(
                f"{output} holds results of this setting that "
                f"{by if version is None else f'dllm {version}'} made, and this is dllm "
                f"{described['version']}: {_WAY_OUT}"
            )


def _alike(described: Mapping[str, Any], output: Path) -> dict[str, Mapping[str, Any]]:
    """Returns the descriptions of the runs in a file that have the settings of a description."""
    runs, asked = {r.run: r.settings for r in read_lines(output)}, _setting(described)
    return {run: settings for run, settings in runs.items() if _setting(settings) == asked}


def _setting(described: Mapping[str, Any]) -> Any:
    """Returns a description without what an edit or another version changes."""
    kept = {key: value for key, value in described.items() if key not in ORIGIN}
    return json.loads(json.dumps(kept, default=str))


def _left(run: Run, problems: Sequence[Problem], writer: Writer) -> list[Problem]:
    """Returns what is left to do, with what killed processes left beside the file taken over."""
    absorb(writer, problems)
    done = read_results(writer.path, run.name)
    check_origin(run.describe(), run.name, writer.path)
    for problem in problems:
        known = done.get(problem.id)
        if known is not None and (known.prompt, known.answer) != (problem.prompt, problem.answer):
            raise ValueError(
                f"{writer.path} holds an answer to another problem with the id {problem.id!r}: "
                f"{_WAY_OUT}"
            )
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
