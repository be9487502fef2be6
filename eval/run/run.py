"""Runs a model over problems, keeps each answer as it comes, resumes after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dllm import cache as caches
from dllm.eval.run.describe import describe, name_of
from dllm.eval.run.environment import Environment, environment_of
from dllm.eval.run.processes import Processes
from dllm.eval.run.record import RunRecord, new_start
from dllm.eval.run.results import Result
from dllm.eval.run.shards import by_length
from dllm.eval.tasks import Task
from dllm.eval.tasks.task import Problem
from dllm.models.model import DenoisingModel
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings

# Problems decoded in one call, so that what is kept of all of them stays small: 22 bytes a column.
_TOGETHER = 1024


class RefusedError(ValueError):
    """The settings do not suit the model or the problems; the message says why."""


@dataclass(frozen=True)
class Run:
    """A model with settings, over the problems of a task.

    `settings.batch_size`, if it is given, takes the place of `batch_size`.
    """

    model: DenoisingModel
    task: Task
    settings: Settings
    batch_size: int = 32  # rows decoded at a time
    processes: Processes = field(default_factory=Processes)  # that share the problems
    keep_trace: bool = False  # in each result; decides no answer, so the name is the same

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def describe(self) -> dict[str, Any]:
        """Returns what decides the answers, as JSON-ready values."""
        return describe(self.model, self.task, self.settings)

    @property
    def name(self) -> str:
        """A short name that is the same for the same settings."""
        return name_of(self.describe())

    @property
    def num_rows(self) -> int:
        """Rows decoded at a time."""
        return self.settings.batch_size or self.batch_size

    @property
    def continuous(self) -> bool:
        """Whether waiting problems take the places of finished ones; else batch follows batch.

        They do where a row that enters feeds no more columns than the others, and with any cache
        if `settings.batch_size` asks for it. Custom noise does not tell problems apart, and has
        them in batches unless asked, which is then refused. Decides no answer.
        """
        if self.settings.batch_size is not None:
            return True
        even = caches.registry.create(self.settings.cache).even
        return even and self.settings.noise is None

    @property
    def block_length(self) -> int:
        """Columns decoded together, whoever chose their number."""
        own = self.settings.block_length or self.model.spec.block_length
        return own or min(DEFAULT_BLOCK_LENGTH, self.settings.max_new_tokens)

    def record(
        self, problems: Sequence[Problem], processes: Sequence[Environment] = ()
    ) -> RunRecord:
        """Returns what is the same for all results that this run makes from now on."""
        digest = hashlib.sha256(repr(problems).encode()).hexdigest()[:16]
        start = new_start(self.num_rows, digest, processes or [environment_of(self.model)])
        start = replace(start, continuous=self.continuous)
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
        from dllm.eval.run import distributed, resume

        if self.processes.count > 1:
            yield from distributed.results(self, problems, output)
        elif output is not None:
            yield from resume.results(self, problems, output)
        else:
            for results in self.batches(problems):
                yield from results

    def batches(self, problems: Sequence[Problem]) -> Iterator[list[Result]]:
        """Yields the results of the rows that one step finished, shortest prompts first.

        When memory runs out, or on Ctrl-C, the rows under way are lost and no others.
        """
        from dllm.eval.run import execute

        left, size = by_length(problems), _TOGETHER if self.continuous else self.num_rows
        for start in range(0, len(left), size):
            yield from execute.results(self, left[start : start + size])
