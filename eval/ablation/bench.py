"""Measures the rows of an ablation, one after the other, into a folder that a kill leaves whole."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dllm.compatible import check
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.ablation.ablation import Ablation, Row
from dllm.eval.ablation.state import Entry, State, key_of
from dllm.eval.errors import RefusedError
from dllm.eval.report.comparison import label
from dllm.eval.run.record import Start, read_records
from dllm.eval.run.results import Result, read_results
from dllm.eval.run.run import Run
from dllm.eval.tasks import Task, find_task
from dllm.eval.tasks.task import Problem
from dllm.models import HostedModel, load
from dllm.settings import resolve

USUAL = 100  # problems of a task that makes its own
_ALL = 10**6  # more problems than any data set has
_WITH_CODE = ("humaneval",)
_UNFIT = re.compile(r"[^\w.,=@+-]+")  # for the name of a file


@dataclass(frozen=True)
class Trial:
    """A row with the problems that it is to answer."""

    row: Row
    task: Task
    problems: Sequence[Problem]


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: all its results, a part of them, or a refusal."""

    trial: Trial
    results: tuple[Result, ...]
    starts: tuple[Start, ...] = ()  # the commands that made them
    refusal: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every problem was answered."""
        return len(self.results) == len(self.trial.problems)


def trials_of(ablation: Ablation, limit: int | None, *, run_code: bool) -> list[Trial]:
    """Returns the rows with their problems; a task's are read once.

    Raises ValueError for problems that cannot be read, before anything is run.
    """
    choices = dict.fromkeys(row.task for row in ablation.rows)
    if run_code and not any(choice.name in _WITH_CODE for choice in choices):
        raise ValueError(f"--run-code: no row has a task with code to run ({_WITH_CODE[0]})")
    found: dict[object, tuple[Task, list[Problem]]] = {}
    for choice in choices:
        task = find_task(
            choice.name, choice.options(run_code=run_code and choice.name in _WITH_CODE)
        )
        count = limit or ablation.limit or (_ALL if task.options else USUAL)
        found[choice] = task, task.take(count)
    return [Trial(row, *found[row.task]) for row in ablation.rows]


class Bench:
    """Runs trials; holds one model at a time, and none while everything is there already."""

    def __init__(self, folder: Path, device: str | None = None, *, keep_trace: bool = True) -> None:
        self.folder, self.device, self.keep_trace = folder, device, keep_trace
        self.state = State(folder)
        self._loaded: tuple[tuple[str, str | None], HostedModel] | None = None

    def kept(self, trial: Trial) -> list[Result] | None:
        """Returns the results of a trial that is finished, in the problems' order, else None."""
        entry = self.state.entry(trial.row.name)
        if entry is None or entry.key != key_of(trial.row, trial.task):
            return None
        results = read_results(self.folder / entry.file, entry.run)
        wanted = [results.get(problem.id) for problem in trial.problems]
        done = [result for result in wanted if result is not None]
        unscored = trial.task.scored and any(result.correct is None for result in done)
        return None if unscored or len(done) < len(wanted) else done

    def results(self, trial: Trial) -> Iterator[Result]:
        """Yields a result for each problem, kept ones first; raises what `Run.results` raises."""
        run = self._run(trial)
        file = Path("runs") / f"{_UNFIT.sub('-', label(run))[:80]}-{run.name}.jsonl"
        key = key_of(trial.row, trial.task)
        self.state.note(trial.row.name, Entry(key, run.name, str(file)))
        yield from run.results(trial.problems, self.folder / file)

    def outcome(self, trial: Trial, results: Sequence[Result], refusal: str | None) -> Outcome:
        """Returns what a trial came to, its results in the problems' order."""
        places = {problem.id: place for place, problem in enumerate(trial.problems)}
        ordered = sorted(results, key=lambda result: places[result.id])
        entry, made = self.state.entry(trial.row.name), {result.start for result in results}
        records = {} if entry is None else read_records(self.folder / entry.file)
        record = records.get(entry.run) if entry is not None else None
        starts = tuple(start for start in (record.starts if record else ()) if start.id in made)
        return Outcome(trial, tuple(ordered), starts, refusal)

    def _run(self, trial: Trial) -> Run:
        row = trial.row
        if row.missing:
            raise RefusedError(row.missing)
        model = self._model(row)
        settings = resolve(model.defaults, None, row.given)
        run = Run(model, trial.task, settings, row.batch_size, keep_trace=self.keep_trace)
        try:
            check(model, settings)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        return run

    def _model(self, row: Row) -> HostedModel:
        wanted = (row.model, row.dtype)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None
            gc.collect()  # two models seldom fit side by side
            try:
                self._loaded = wanted, load(row.model, dtype=row.dtype, device=self.device)
            except (ValueError, OSError) as error:
                raise RefusedError(f"the model cannot be loaded: {error}") from error
        return self._loaded[1]


# What ends a trial and not the ablation.
FAILURES = (RefusedError, NotEnoughMemoryError, BrokenLogitsError)


def by_model(trials: Sequence[Trial]) -> list[Trial]:
    """Returns trials in an order in which each model is loaded once."""
    seen: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in trials:
        seen.setdefault((trial.row.model, trial.row.dtype), []).append(trial)
    return [trial for group in seen.values() for trial in group]
