"""One run by one process, which goes on from what its results file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.eval.run.answers import rescored
from dllm.eval.run.record import begun, note
from dllm.eval.run.results import Result, read_results
from dllm.eval.run.shards import absorb
from dllm.eval.run.writer import Writer, writing
from dllm.eval.tasks.task import Problem

if TYPE_CHECKING:
    from dllm.eval.run.run import Run


def results(run: Run, problems: Sequence[Problem], output: Path) -> Iterator[Result]:
    """Yields the results that are there, then new ones, each as soon as it is on the disk."""
    with writing(output) as writer:
        left = left_of(run, problems, writer)
        fresh = run.record(problems)
        record = begun(output, run.name, fresh) if left else fresh
        yield from kept(run, problems, writer)
        noted = False
        for batch in run.batches(left):
            if not noted:  # a run that is refused leaves no file
                note(output, run.name, record)
                noted = True
            stamped = [replace(result, start=fresh.starts[0].id) for result in batch]
            writer.append(stamped)
            yield from stamped


def left_of(run: Run, problems: Sequence[Problem], writer: Writer) -> list[Problem]:
    """Returns what is left to do, with what killed processes left beside the file taken over."""
    absorb(writer, problems)
    done = read_results(writer.path, run.name)
    return [problem for problem in problems if problem.id not in done]


def kept(run: Run, problems: Sequence[Problem], writer: Writer) -> Iterator[Result]:
    """Yields results that are there, with a new line for those that can be scored only now."""
    done = read_results(writer.path, run.name)
    for problem in problems:
        if problem.id in done:
            result = done[problem.id]
            scored = rescored(run, problem, result)
            if scored is not None:
                writer.append([scored])
            yield scored or result
