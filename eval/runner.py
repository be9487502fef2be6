"""Runs a model over problems, keeps each batch as it goes, resumes after a kill."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dllm import schedulers
from dllm.capacity import NotEnoughMemoryError
from dllm.eval.answers import results_of
from dllm.eval.describe import describe, name_of, seed_of
from dllm.eval.environment import Environment, environment_of
from dllm.eval.problem import Problem
from dllm.eval.processes import Processes
from dllm.eval.results import Result
from dllm.eval.run_record import RunRecord, new_start
from dllm.eval.shards import by_length
from dllm.eval.tasks import Task
from dllm.generate import generate
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings


class RefusedError(ValueError):
    """The settings do not suit the model or the problems; the message says why."""


@dataclass(frozen=True)
class Run:
    """A model with settings, over the problems of a task."""

    model: DenoisingModel
    task: Task
    settings: Settings
    batch_size: int = 32
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
    def block_length(self) -> int:
        """Columns decoded together, whoever chose their number."""
        own = self.settings.block_length or self.model.spec.block_length
        return own or min(DEFAULT_BLOCK_LENGTH, self.settings.max_new_tokens)

    def record(
        self, problems: Sequence[Problem], processes: Sequence[Environment] = ()
    ) -> RunRecord:
        """Returns what is the same for all results that this run makes from now on."""
        digest = hashlib.sha256(repr(problems).encode()).hexdigest()[:16]
        start = new_start(self.batch_size, digest, processes or [environment_of(self.model)])
        notes = {"description": self.task.description, **self.task.notes}
        return RunRecord(self.describe(), notes, (start,))

    def results(self, problems: Sequence[Problem], output: Path | None) -> Iterator[Result]:
        """Yields a result for each problem, first those that `output` already holds.

        Each new one is written and flushed to disk before it is yielded, so a run that is killed
        goes on with the same command and repeats nothing that was finished. Raises RefusedError
        when the settings cannot decode the problems, NotEnoughMemoryError when a batch does not
        fit; a smaller one goes on where it stopped. Of several processes the main one yields all,
        the others what they decode themselves.
        """
        from dllm.eval import alone, team

        if self.processes.count > 1:
            yield from team.results(self, problems, output)
        elif output is not None:
            yield from alone.results(self, problems, output)
        else:
            for results in self.batches(problems):
                yield from results

    def batches(self, problems: Sequence[Problem]) -> Iterator[list[Result]]:
        """Yields the results of each batch, of the shortest prompts first.

        When memory runs out, those of the rows that were finished come before the error.
        """
        left = by_length(problems)
        for start in range(0, len(left), self.batch_size):
            batch, shortage = left[start : start + self.batch_size], None
            try:
                results = self._batch(batch)
            except NotEnoughMemoryError as error:
                results, shortage = self._finished(batch, error.partial), error
            if results:
                yield results
            if shortage is not None:
                raise shortage

    def _finished(
        self, problems: Sequence[Problem], partial: GenerationOutput | None
    ) -> list[Result]:
        """Returns the results of the rows that a batch had finished before memory ran out."""
        revises = schedulers.registry.create(self.settings.scheduler).can_revise
        if partial is None or revises:  # a full row may have been about to change
            return []
        results = results_of(self, problems, partial)
        return [result for result in results if result.finish_reason != "interrupted"]

    def _batch(self, problems: Sequence[Problem]) -> list[Result]:
        seeds = [seed_of(self.settings.seed, problem.id) for problem in problems]
        prompts: list[Any] = [problem.given for problem in problems]
        try:
            out = generate(self.model, prompts, replace(self.settings, seed=seeds))
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return results_of(self, problems, out)
