"""Runs an ablation under a bar that says which run of how many, and how long it will take."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm.eval.ablation.bench import FAILURES, Bench, Outcome, Trial, by_model
from dllm.eval.run.results import Result


def measure(bench: Bench, trials: Sequence[Trial]) -> tuple[list[Outcome], bool]:
    """Returns what each trial came to, in the trials' order, and whether Ctrl-C cut them short.

    What is there already is not counted in the bar, whose estimate it would spoil.
    """
    kept = {id(trial): bench.kept(trial) for trial in trials}
    left = by_model([trial for trial in trials if kept[id(trial)] is None])
    found = {
        id(trial): bench.outcome(trial, results, None)
        for trial in trials
        if (results := kept[id(trial)]) is not None
    }
    stopped = False
    with _Bar(left, len(trials)) as bar:
        for trial in left:
            outcome, stopped = _run(bench, trial, bar)
            found[id(trial)] = outcome
            bar.finished(outcome)
            if stopped:
                break
    return [found.get(id(t)) or bench.outcome(t, (), None) for t in trials], stopped


def _run(bench: Bench, trial: Trial, bar: _Bar) -> tuple[Outcome, bool]:
    results: list[Result] = []
    bar.begins(trial)
    try:
        for result in bench.results(trial):
            results.append(result)
            bar.advance()
    except FAILURES as error:
        return bench.outcome(trial, results, str(error)), False
    except KeyboardInterrupt:
        return bench.outcome(trial, results, None), True
    return bench.outcome(trial, results, None), False


class _Bar:
    def __init__(self, left: Sequence[Trial], total: int) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
        rest = (MofNCompleteColumn(), TextColumn("problems, left:"), TimeRemainingColumn())
        self.progress = Progress(*columns, *rest, console=Console(stderr=True))
        self.done, self.total = total - len(left), total
        self.problems = sum(len(trial.problems) for trial in left)
        self.counted = 0  # of the problems before this run

    def __enter__(self) -> _Bar:
        self.progress.start()
        if self.done:
            self._say(f"{self.done} of {self.total} runs were there already")
        self.task = self.progress.add_task("", total=self.problems)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begins(self, trial: Trial) -> None:
        self.done += 1
        name = f"run {self.done} of {self.total}: {trial.row.name}"
        self.progress.update(self.task, description=name)

    def advance(self) -> None:
        self.progress.update(self.task, advance=1)

    def finished(self, outcome: Outcome) -> None:
        """Says what came out; problems that were not answered are no longer left."""
        self.counted += len(outcome.trial.problems)
        self.progress.update(self.task, completed=self.counted)
        said = f"{len(outcome.results)} problems"
        if all(result.correct is not None for result in outcome.results):
            right = sum(bool(result.correct) for result in outcome.results)
            said = f"{right} of {len(outcome.results)} right"
        said = f"refused: {outcome.refusal}" if outcome.refusal is not None else said
        self._say(f"{self.done} of {self.total}: {outcome.trial.row.name}: {said}")

    def _say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
