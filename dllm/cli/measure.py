"""Measures runs one after the other, shows how far they are, and prints what they came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console

from dllm.cli.paths import check_writable
from dllm.cli.progress import bars, shown
from dllm.cli.table import comparison
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.report.comparison import heading, label
from dllm.eval.run.record import RunRecord, read_records
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run
from dllm.eval.run.summary import Summary, full_record, record, summarise
from dllm.eval.tasks.task import Problem

INTERRUPTED = 130
FAILED = 2


@dataclass(frozen=True)
class Measured:
    """A run with all results that it has, or as many as there are yet."""

    run: Run
    results: Sequence[Result]
    record: RunRecord

    @property
    def summary(self) -> Summary:
        """What they come to."""
        return summarise(self.results)

    @property
    def full_record(self) -> dict[str, Any]:
        """All that should be published with it."""
        return full_record(self.run.name, self.record, self.results)


@dataclass(frozen=True)
class Ending:
    """How the runs ended: all of them, or by Ctrl-C, or by an error."""

    measured: Sequence[Measured]
    stopped: bool = False
    error: Exception | None = None


def compare(
    runs: Sequence[Run],
    problems: Sequence[Problem],
    output: Path | None,
    as_json: bool,
    with_record: bool = False,
) -> None:
    """Runs all and prints the table, or JSON; on Ctrl-C, or without memory, what is done so far.

    The records of the runs are in the JSON, or below the table if they are asked for. Of several
    processes the main one prints.
    """
    check_writable(output, "--output")
    main, ending = runs[0].processes.is_main, _measure(runs, problems, output)
    if not main and (ending.error is not None or ending.stopped):
        raise typer.Exit(INTERRUPTED if ending.stopped else FAILED)  # the main one says why
    if ending.error is not None and not isinstance(ending.error, NotEnoughMemoryError):
        raise ending.error
    if main:
        _report(runs[0], ending.measured, as_json, with_record)
    if ending.error is not None:
        raise ending.error
    if ending.stopped:
        kept = f"; {output} is kept and the same command goes on" if output else ""
        Console(stderr=True).print(f"interrupted{kept}")
        raise typer.Exit(INTERRUPTED)


def _measure(runs: Sequence[Run], problems: Sequence[Problem], output: Path | None) -> Ending:
    measured: list[Measured] = []
    ending = Ending(measured)
    with bars(quiet=not runs[0].processes.is_main) as progress:
        for run in runs:
            results: list[Result] = []
            try:
                found = run.results(problems, output)
                for result in shown(progress, label(run), found, len(problems)):
                    results.append(result)
            except KeyboardInterrupt:
                ending = replace(ending, stopped=True)
            except (ValueError, NotEnoughMemoryError, BrokenLogitsError) as error:
                ending = replace(ending, error=error)
            if results:
                measured.append(Measured(run, results, _record(run, problems, output)))
            if ending.stopped or ending.error is not None:
                break
    return ending


def _record(run: Run, problems: Sequence[Problem], output: Path | None) -> RunRecord:
    """Returns the record in the file, or of the one start that there is without a file."""
    known = read_records(output) if output is not None else {}
    return known.get(run.name) or run.record(problems)


def _report(first: Run, measured: Sequence[Measured], as_json: bool, with_record: bool) -> None:
    summaries = [one.summary for one in measured]
    if as_json:
        rows = [{**record(one.summary), "record": one.full_record} for one in measured]
        print(json.dumps({"rows": rows}))
        return
    console = Console(highlight=False)
    title = heading(first, max((summary.problems for summary in summaries), default=0))
    console.print(comparison(title, summaries))
    for one, summary in zip(measured, summaries, strict=True):
        shares = {**summary.scores, **{f"pass@{k}": part for k, part in summary.pass_at.items()}}
        if shares:
            said = ", ".join(f"{name} {part:.1%}" for name, part in shares.items())
            console.print(f"{label(one.run)}: {said}", markup=False)
    for one in measured if with_record else ():
        print(yaml.safe_dump(one.full_record, sort_keys=False, allow_unicode=True))
    if not first.task.scored:
        note = "Not scored: --run-code runs the code in a sandbox; the same command goes on."
        Console(stderr=True).print(note)
