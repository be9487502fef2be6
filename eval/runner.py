"""Runs a model over problems, writes a JSON line for each as it goes, resumes after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from dllm import cache as caches
from dllm import schedulers
from dllm.eval.problem import Problem
from dllm.eval.tasks import Task
from dllm.generate import generate
from dllm.models.model import DenoisingModel
from dllm.settings import Settings


@dataclass(frozen=True)
class Result:
    """One problem, answered under one setting; a line of the results file."""

    run: str  # names the settings; problems of one run are comparable
    id: str
    prompt: str
    text: str
    answer: str
    correct: bool
    prompt_tokens: int
    valid_tokens: int  # before the first end token
    raw_tokens: int  # all that the model committed
    forwards: int  # passes in which the row had something to commit
    tokens_fed: float  # columns fed, the batch's divided by its rows
    seconds: float  # the batch's divided by its rows
    finish_reason: str
    settings: dict[str, Any]


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
        settings = self.settings
        return {
            "model": self.model.name,
            "task": self.task.name,
            "scheduler": schedulers.registry.create(settings.scheduler).summary(),
            "cache": caches.registry.create(settings.cache).summary(),
            "max_new_tokens": settings.max_new_tokens,
            "block_length": settings.block_length,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "guidance_scale": settings.guidance_scale,
            "seed": settings.seed,
        }

    @property
    def name(self) -> str:
        """A short name that is the same for the same settings."""
        text = json.dumps(self.describe(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def results(self, problems: Sequence[Problem], output: Path | None) -> Iterator[Result]:
        """Yields a result for each problem, first those that `output` already holds.

        Each new one is written and flushed to disk before it is yielded, so a run that is killed
        goes on with the same command and repeats nothing that was finished.
        """
        done = read_results(output, self.name) if output is not None else {}
        yield from (done[problem.id] for problem in problems if problem.id in done)
        left = [problem for problem in problems if problem.id not in done]
        left.sort(key=lambda problem: len(problem.prompt))
        if output is None:
            yield from self._decode(left, None)
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        _mend(output)
        with output.open("a", encoding="utf-8") as file:
            yield from self._decode(left, file)

    def _decode(self, problems: Sequence[Problem], file: TextIO | None) -> Iterator[Result]:
        for start in range(0, len(problems), self.batch_size):
            results = self._batch(problems[start : start + self.batch_size])
            if file is not None:
                file.writelines(json.dumps(asdict(result)) + "\n" for result in results)
                file.flush()
                os.fsync(file.fileno())
            yield from results

    def _batch(self, problems: Sequence[Problem]) -> list[Result]:
        seeds = [_seed(self.settings.seed, problem.id) for problem in problems]
        prompts = [problem.prompt for problem in problems]
        out = generate(self.model, prompts, replace(self.settings, seed=seeds))
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
                correct=self.task.is_correct(problem, text),
                prompt_tokens=row.prompt_tokens,
                valid_tokens=row.valid_tokens,
                raw_tokens=row.raw_tokens,
                forwards=row.forwards,
                tokens_fed=out.metrics.tokens_fed * share,
                seconds=out.metrics.seconds * share,
                finish_reason=row.finish_reason,
                settings=described,
            )
            for problem, text, row in zip(problems, out.texts, out.metrics.rows, strict=True)
        ]


def read_results(path: Path, run: str | None = None) -> dict[str, Result]:
    """Returns the results in a file by problem id, of one run if it is named.

    A last line that was cut off by a kill is ignored; any other damage is a ValueError.
    """
    if not path.exists():
        return {}
    results: dict[str, Result] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            result = Result(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            if number == len(lines):
                continue
            raise ValueError(
                f"{path} line {number} is not a result ({error}): choose another --output"
            ) from None
        if run is None or result.run == run:
            results[result.id] = result
    return results


def _mend(path: Path) -> None:
    """Drops a last line that a kill cut off, so that the next one starts on a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _seed(seed: int | list[int] | None, problem_id: str) -> int:
    """Returns the seed of a problem, which does not depend on its place in a batch."""
    text = f"{seed if isinstance(seed, int) else 0}-{problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
