"""Candidates as they are measured, under a bar, and tables of what they came to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from dllm.cli.options import INTERRUPTED
from dllm.cli.shown import Terminal, say, say_there
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.ablation.lines import C, Candidate, Line
from dllm.eval.report.tables import WORDS, Table
from dllm.eval.run.processes import set_all_aside
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run
from dllm.eval.run.summary import Summary
from dllm.eval.tasks.task import Problem

FAILED = 2
OTHER_COLUMNS = 60  # of a comparison's table, the folded verdict's among them


@dataclass
class Measurement(Generic[C]):
    """All lines that were measured, and what cut them short."""

    lines: list[Line[C]] = field(default_factory=list)
    stopped: bool = False  # by Ctrl-C
    error: Exception | None = None


def measure(
    candidates: Iterable[C],
    results_of: Callable[[C], Iterable[Result]],
    bars: Bars,
    refusals: tuple[type[Exception], ...] = (),
) -> Measurement[C]:
    """Returns a line for each candidate; Ctrl-C and other errors than refusals end with a part."""
    measured: Measurement[C] = Measurement()
    with bars.progress:
        for candidate in candidates:
            results: list[Result] = []
            refusal = None
            bars.begin(candidate)
            try:
                for result in results_of(candidate):
                    results.append(result)
                    bars.advance(result)
            except KeyboardInterrupt:
                measured.stopped = True
            except refusals as error:
                refusal = str(error)
            except (ValueError, NotEnoughMemoryError, BrokenLogitsError) as error:
                measured.error = error
            order = {problem.id: index for index, problem in enumerate(candidate.problems)}
            results.sort(key=lambda result: order[result.id])
            measured.lines.append(Line(candidate, results, refusal))
            bars.end(measured.lines[-1])
            if measured.stopped or measured.error is not None:
                break
    return measured


def progress(*, quiet: bool = False) -> Progress:
    """Returns bars on stderr, each with a `note` beside its count; quiet ones show nothing."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
    rest = (MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    console = Terminal(stderr=True, quiet=quiet)
    # What is printed while they are shown goes to stdout all the same.
    return Progress(*columns, *rest, disable=quiet, console=console, redirect_stdout=False)


class Bars:
    """A bar for each candidate, or one for all of them and a line for each that is done."""

    def __init__(self, candidates: Sequence[Candidate], total: int | None, quiet: bool) -> None:
        """Shows how far `candidates` are, which are all that is left of a `total`, if there is one.

        What is there already is not counted in the bar, whose estimate it would spoil.
        """
        self.progress = progress(quiet=quiet)
        self._total, self._number = total, (total or 0) - len(candidates)
        self._done = self._right = self._count = 0
        if total is not None:
            problems = sum(len(candidate.problems) for candidate in candidates)
            self._bar = self.progress.add_task("", total=problems, note="problems, left:")
        if self._number > 0:
            self._print(f"{self._number} of {total} runs were there already")

    def begin(self, candidate: Candidate) -> None:
        """Names the candidate that is measured now."""
        self._number += 1
        if self._total is None:
            problems, self._right, self._count = len(candidate.problems), 0, 0
            self._bar = self.progress.add_task(candidate.name, total=problems, note="0% right")
        else:
            name = f"run {self._number} of {self._total}: {candidate.name}"
            self.progress.update(self._bar, description=name)

    def advance(self, result: Result) -> None:
        """Counts a result."""
        self._count += 1
        self._right += bool(result.correct)
        self.progress.update(self._bar, advance=1)
        if self._total is None:
            self.progress.update(self._bar, note=f"{self._right / self._count:.0%} right")

    def end(self, line: Line[Any]) -> None:
        """Prints what came out; problems that were not answered are no longer left."""
        if self._total is None:
            return
        self._done += len(line.candidate.problems)
        self.progress.update(self._bar, completed=self._done)
        count, right = len(line.results), sum(bool(result.correct) for result in line.results)
        scored = all(result.correct is not None for result in line.results)
        brief = f"{right} of {count} right" if scored else f"{count} problems"
        if line.results or line.refusal is not None:
            brief = brief if line.refusal is None else line.state
            self._print(f"{self._number} of {self._total}: {line.name}: {brief}")

    def _print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


def begin(asked: Sequence[tuple[Run, Sequence[Problem], Path]], *, fresh: bool) -> None:
    """Sets the files of runs aside if they are to start anew, else says what is there already."""
    outputs = list(dict.fromkeys(output for _, _, output in asked))
    for output in outputs if fresh else ():
        kept = set_all_aside(output)
        if kept is not None:
            say(f"kept what was there as {kept}")
    for run, _, output in asked:
        for other in run.beside(output):
            say(
                f"{output} also holds {other}, a run of this setting by other code or with another "
                f"checkpoint: this one is called {run.name}, and goes beside it"
            )
    there = sum(run.there(problems, output) for run, problems, output in asked)
    where = outputs[0] if len(outputs) == 1 else outputs[0].parent
    say_there(there, sum(len(problems) for _, problems, _ in asked), where)


def interrupted(output: Path | None) -> NoReturn:
    """Says how to go on after Ctrl-C, and exits."""
    kept = f"; {output} is kept and the same command goes on" if output else ""
    say(f"interrupted{kept}")
    raise typer.Exit(INTERRUPTED)


def written(files: Sequence[Path]) -> None:
    """Says which files were written, if any were."""
    if files:
        say(f"written: {', '.join(map(str, files))}")


def empty_table(title: str, padding: tuple[int, int, int, int] = (0, 1, 0, 0)) -> RichTable:
    """Returns a table without columns, as all that compare runs look."""
    return RichTable(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=padding)


def accuracy_cells(summary: Summary) -> tuple[str, str]:
    """Returns the accuracy and its interval as text."""
    low, high = 100 * summary.accuracy_low, summary.accuracy_high
    return f"{summary.accuracy:.1%}", f"{low:.0f}-{high:.0%}"


def printed(table: Table, width: int | None = None) -> RichTable:
    """Returns a table whose columns of words fold and whose columns of figures do not.

    With the console's width, names get what the other columns can spare of it.
    """
    narrow = width is not None
    shown = empty_table(table.title, (0, 0, 0, 0) if narrow else (0, 1, 0, 0))
    for index, head in enumerate(table.heads):
        if index == 0 or head in WORDS or head.startswith("now "):
            shown.add_column(head, no_wrap=narrow and index == 0)
        else:
            head = head.replace("/", "/\n").replace(" (", "\n(").replace("row ", "row\n")
            shown.add_column(head, justify="right")
    for first, *others in table.rows:
        name = Text(first) if width is None else _fold(first, max(width - OTHER_COLUMNS, 12))
        shown.add_row(name, *map(Text, others))
    return shown


def _fold(name: str, room: int) -> Text:
    """Returns a short form in lines of at most `room`, broken between options if possible."""
    lines = [""]
    for part in re.split(r"(?<=[:, ])", name):
        if len(lines[-1]) + len(part) > room:
            lines.append("")
        lines[-1] += part
    return Text("\n".join(line[i : i + room] for line in lines for i in range(0, len(line), room)))
