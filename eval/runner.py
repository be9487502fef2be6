"""Runs a model over problems, keeps each batch as it goes, resumes after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dllm import cache as caches
from dllm import schedulers
from dllm.capacity import NotEnoughMemoryError
from dllm.eval.problem import Problem
from dllm.eval.results import Result, append, mend, read_results
from dllm.eval.tasks import Task
from dllm.generate import generate
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings

# Named one by one in a run's description, or, as the noise, not a part of it.
_DESCRIBED = (
    *("scheduler", "cache", "max_new_tokens", "block_length", "temperature", "top_p", "top_k"),
    *("guidance_scale", "seed", "generator", "noise"),
)


class RefusedError(ValueError):
    """The settings do not suit the model or the problems; the message says why."""


@dataclass(frozen=True)
class Run:
    """A model with settings, over the problems of a task."""

    model: DenoisingModel
    task: Task
    settings: Settings
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def describe(self) -> dict[str, Any]:
        """Returns what decides the answers, as JSON-ready values."""
        settings, dtype = self.settings, getattr(self.model, "dtype", None)
        return {
            "model": self.model.name,
            "dtype": None if dtype is None else str(dtype),
            "task": self.task.name,
            **({"task_options": dict(self.task.options)} if self.task.options else {}),
            "scheduler": schedulers.registry.create(settings.scheduler).summary(),
            "cache": caches.registry.create(settings.cache).summary(),
            "max_new_tokens": settings.max_new_tokens,
            "block_length": settings.block_length,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "guidance_scale": settings.guidance_scale,
            "seed": settings.seed,
            "other": _changed(settings),
        }

    @property
    def name(self) -> str:
        """A short name that is the same for the same settings."""
        text = json.dumps(self.describe(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def block_length(self) -> int:
        """Columns decoded together, whoever chose their number."""
        own = self.settings.block_length or self.model.spec.block_length
        return own or min(DEFAULT_BLOCK_LENGTH, self.settings.max_new_tokens)

    def results(self, problems: Sequence[Problem], output: Path | None) -> Iterator[Result]:
        """Yields a result for each problem, first those that `output` already holds.

        Each new one is written and flushed to disk before it is yielded, so a run that is killed
        goes on with the same command and repeats nothing that was finished. Raises RefusedError
        when the settings cannot decode the problems, NotEnoughMemoryError when a batch does not
        fit; a smaller one goes on where it stopped.
        """
        done = read_results(output, self.name) if output is not None else {}
        kept = [(problem, done[problem.id]) for problem in problems if problem.id in done]
        yield from self._scored(kept, output)
        left = [problem for problem in problems if problem.id not in done]
        left.sort(key=lambda problem: len(problem.prompt))
        if output is not None:
            mend(output)
        for start in range(0, len(left), self.batch_size):
            batch, shortage = left[start : start + self.batch_size], None
            try:
                results = self._batch(batch)
            except NotEnoughMemoryError as error:
                results, shortage = self._finished(batch, error.partial), error
            if output is not None:
                append(output, results)
            yield from results
            if shortage is not None:
                raise shortage

    def _scored(
        self, kept: Sequence[tuple[Problem, Result]], output: Path | None
    ) -> Iterator[Result]:
        """Yields kept results, with a new line for those that can be scored only now."""
        for problem, result in kept:
            if result.correct is None and self.task.scored:
                said = self.task.judgement(problem, result.text)
                result = replace(result, correct=said.correct, details=dict(said.details))
                if output is not None:
                    mend(output)
                    append(output, [result])
            yield result

    def _finished(
        self, problems: Sequence[Problem], partial: GenerationOutput | None
    ) -> list[Result]:
        """Returns the results of the rows that a batch had finished before memory ran out."""
        revises = schedulers.registry.create(self.settings.scheduler).can_revise
        if partial is None or revises:  # a full row may have been about to change
            return []
        results = self._results(problems, partial)
        return [result for result in results if result.finish_reason != "interrupted"]

    def _batch(self, problems: Sequence[Problem]) -> list[Result]:
        seeds = [_seed(self.settings.seed, problem.id) for problem in problems]
        prompts: list[Any] = [problem.given for problem in problems]
        try:
            out = generate(self.model, prompts, replace(self.settings, seed=seeds))
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return self._results(problems, out)

    def _results(self, problems: Sequence[Problem], out: GenerationOutput) -> list[Result]:
        if out.texts is None:
            raise ValueError(f"model {self.model.name!r} has no tokenizer, which tasks need")
        share = 1 / len(problems)
        described, name = self.describe(), self.name
        return [
            Result(
                run=name,
                id=problem.id,
                prompt=problem.prompt,
                text=text,
                answer=problem.answer,
                correct=judgement.correct,
                prompt_tokens=row.prompt_tokens,
                valid_tokens=row.valid_tokens,
                raw_tokens=row.raw_tokens,
                forwards=row.forwards,
                row_forwards=row.row_forwards,
                tokens_fed=out.metrics.tokens_fed * share,
                seconds=out.metrics.seconds * share,
                finish_reason=row.finish_reason,
                settings=described,
                flops=None if out.metrics.flops is None else out.metrics.flops * share,
                details=dict(judgement.details),
            )
            for problem, text, row in zip(problems, out.texts, out.metrics.rows, strict=True)
            for judgement in (self.task.judgement(problem, text),)
        ]


def _changed(settings: Settings) -> dict[str, str]:
    """Returns the further settings that are not at their default, as text."""
    return {
        field.name: str(getattr(settings, field.name))
        for field in fields(settings)
        if field.name not in _DESCRIBED and getattr(settings, field.name) != field.default
    }


def _seed(seed: int | list[int] | None, problem_id: str) -> int:
    """Returns the seed of a problem, which does not depend on its place in a batch."""
    text = f"{seed if isinstance(seed, int) else 0}-{problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
