"""The comparison behind `dllm eval --schedulers`: measures, judges, prints, writes, draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from dllm.cli.paths import check_writable
from dllm.cli.progress import bars, shown
from dllm.cli.table import standings_table
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.errors import RefusedError
from dllm.eval.report.candidate import Contender, Outcome
from dllm.eval.report.comparison import LEGEND, heading, record, write_csv, write_markdown
from dllm.eval.report.plot import draw
from dllm.eval.report.standings import Standing, judge
from dllm.eval.run.results import Result
from dllm.eval.tasks.task import Problem

INTERRUPTED = 130


@dataclass(frozen=True)
class Destination:
    """Where a comparison goes."""

    folder: Path | None  # a results file for each contender, and the tables
    plot: Path | None
    as_json: bool

    def __post_init__(self) -> None:
        if self.plot is not None and self.plot.suffix != ".png":
            raise ValueError(f"plot={self.plot} must end in .png")
        check_writable(self.plot, "--plot")
        folder = self.folder
        if folder is not None and (folder.is_file() or folder.suffix == ".jsonl"):
            raise ValueError(
                f"output={folder} must be a folder: a comparison writes a file for each scheduler"
            )
        if folder is not None:
            check_writable(folder / "results.csv", "--output")


@dataclass(frozen=True)
class Comparison:
    """Contenders on the same problems, and where the report goes."""

    contenders: Sequence[Contender]
    problems: Sequence[Problem]
    to: Destination

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for contender in self.contenders:
            if contender.run.name in seen:
                twice = f"{seen[contender.run.name]!r} and {contender.text!r}"
                raise ValueError(f"{twice} are the same setting: keep one of them")
            seen[contender.run.name] = contender.text

    @property
    def is_main(self) -> bool:
        """Whether this process reports; of several ones, only one does."""
        return self.contenders[0].run.processes.is_main

    @property
    def title(self) -> str:
        """What is measured."""
        names = ", ".join(dict.fromkeys(contender.cache for contender in self.contenders))
        return f"{heading(self.contenders[0].run, len(self.problems))}, cache {names}"

    def run(self) -> None:
        """Measures all and reports; on Ctrl-C prints what is done and leaves the files alone."""
        outcomes, stopped = self._measure()
        standings = judge(outcomes)
        if not self.is_main:
            return
        if standings:
            self._print(standings)
        if stopped:
            folder = self.to.folder
            kept = f"; {folder} is kept and the same command goes on" if folder else ""
            Console(stderr=True).print(f"interrupted{kept}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED)
        self._write(standings)
        refusals = [outcome.refusal for outcome in outcomes if outcome.refusal is not None]
        if len(refusals) == len(outcomes):
            raise ValueError(f"every scheduler refused, the first one because: {refusals[0]}")

    def _measure(self) -> tuple[list[Outcome], bool]:
        """Returns the outcomes in the order of the contenders, and whether Ctrl-C came."""
        outcomes: list[Outcome] = []
        with bars(quiet=not self.is_main) as progress:
            for number, contender in enumerate(self.contenders, start=1):
                label = f"{number}/{len(self.contenders)} {contender.text}"
                outcome, stopped = self._outcome(progress, label, contender)
                for bar in progress.task_ids:  # dozens of bars would not fit on a screen
                    progress.remove_task(bar)
                if outcome.results or outcome.refusal is not None:
                    outcomes.append(outcome)
                    said = f"{label}: {_brief(outcome)}"
                    progress.console.print(said, markup=False, highlight=False, soft_wrap=True)
                if stopped:
                    return outcomes, True
        return outcomes, False

    def _outcome(
        self, progress: Progress, label: str, contender: Contender
    ) -> tuple[Outcome, bool]:
        file = self.to.folder / contender.file if self.to.folder is not None else None
        results: list[Result] = []
        refusal, stopped = None, False
        try:
            found = contender.run.results(self.problems, file)
            for result in shown(progress, label, found, len(self.problems)):
                results.append(result)
        except (RefusedError, NotEnoughMemoryError) as error:
            refusal = str(error)
        except KeyboardInterrupt:
            stopped = True
        return Outcome(contender, tuple(results), len(self.problems), refusal), stopped

    def _print(self, standings: Sequence[Standing]) -> None:
        if self.to.as_json:
            rows = [record(standing) for standing in standings]
            print(json.dumps({"title": self.title, "rows": rows}))
            return
        console = Console(highlight=False)
        console.print(standings_table(self.title, standings, console.width), LEGEND)

    def _write(self, standings: Sequence[Standing]) -> None:
        written: list[Path] = []
        if self.to.folder is not None:
            self.to.folder.mkdir(parents=True, exist_ok=True)
            base = self.to.folder / self.contenders[0].run.task.name
            written += [base.with_suffix(".csv"), base.with_suffix(".md")]
            write_csv(written[0], standings)
            write_markdown(written[1], self.title, standings)
        if self.to.plot is not None and draw(self.to.plot, self.title, standings):
            written.append(self.to.plot)
        if written:
            names = ", ".join(map(str, written))
            Console(stderr=True).print(f"written: {names}", markup=False, soft_wrap=True)


def _brief(outcome: Outcome) -> str:
    if outcome.refusal is not None:
        return f"refused: {outcome.refusal}"
    right = sum(bool(result.correct) for result in outcome.results)
    return f"{right} of {len(outcome.results)} right"
