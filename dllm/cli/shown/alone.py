"""Runs that nothing is compared with, and votes among them, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.table import Table as RichTable

from dllm.cli.options import INTERRUPTED, check_writable, naming
from dllm.cli.shown import Terminal, say
from dllm.cli.shown.measured import (
    FAILED,
    Bars,
    accuracy_cells,
    begin,
    empty_table,
    interrupted,
    measure,
)
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.ablation.lines import Candidate, Line
from dllm.eval.report.standings import heading
from dllm.eval.report.tables import notes_of
from dllm.eval.run.describe import label_of
from dllm.eval.run.record import read_records
from dllm.eval.run.run import Run
from dllm.eval.run.summary import Summary, full_record, record
from dllm.eval.run.vote import voted
from dllm.eval.tasks.task import Problem


@dataclass(frozen=True)
class _Plain(Candidate):
    """A run that nothing is compared with, or a vote among some."""

    run: Run  # of a vote the first of them
    vote: tuple[int, ...] = ()  # block lengths
    blocks: int | None = None  # of a run that votes


def measure_runs(
    runs: Sequence[Run],
    problems: Sequence[Problem],
    output: Path | None,
    as_json: bool,
    with_record: bool = False,
    *,
    fresh: bool = False,
    vote: Sequence[int] = (),
) -> None:
    """Runs all and prints the table, or JSON; on Ctrl-C, or without memory, what is done so far.

    The records of the runs are in the JSON, or below the table if they are asked for. Of several
    processes the main one prints. With the block lengths of a `vote` so many runs, one behind the
    other, are of one setting, and a line follows them that says what their majority came to.
    """
    check_writable(output, "--output")
    if output is not None and output.exists() and not output.is_file():
        raise ValueError(f"--output {output} is a device: name a file, that a stopped run goes on")
    main, candidates = runs[0].processes.is_main, []
    for number, run in enumerate(runs, start=1):
        label, subject = label_of(run.describe()), (run.model.name, run.task.name)
        label += f", blocks of {run.block_length}" if vote else ""
        names = (number, label, label, label)
        blocks = run.block_length if vote else None
        candidates.append(_Plain(*names, subject, problems, run, blocks=blocks))
    if main and output is not None:
        begin([(run, problems, output) for run in runs], fresh=fresh)
    bars = Bars(candidates, None, quiet=not main)
    with naming(output):
        measured = measure(candidates, lambda one: one.run.results(problems, output), bars)
    if not main and (measured.error is not None or measured.stopped):
        raise typer.Exit(INTERRUPTED if measured.stopped else FAILED)  # the main one says why
    if measured.error is not None and not isinstance(measured.error, NotEnoughMemoryError):
        raise measured.error
    if main:
        lines = [line for line in measured.lines if line.results]
        _report(runs[0], list(_with_votes(lines, vote)), output, as_json, with_record)
    if measured.error is not None:
        raise measured.error
    if measured.stopped:
        interrupted(output)


def _with_votes(lines: Sequence[Line[_Plain]], vote: Sequence[int]) -> Iterator[Line[_Plain]]:
    """Yields the lines, and behind those of each vote whose problems all have answers its own."""
    group: list[Line[_Plain]] = []
    for line in lines:
        yield line
        group = [*group, line] if vote else []
        if vote and len(group) == len(vote):
            first, name = group[0].candidate, f"vote of {', '.join(map(str, vote))}"
            if all(len(one.results) == len(first.problems) for one in group):
                runs = [one.results for one in group]
                results = voted(first.run.task, first.problems, runs)
                name = f"{label_of(first.run.describe())}, {name}"
                candidate = replace(first, name=name, vote=tuple(vote), blocks=None)
                yield Line(candidate, results)
            group = []


def _named(line: Line[_Plain]) -> Summary:
    """Returns the summary of a line, in whose table block lengths are told apart."""
    summary, vote, blocks = line.measured, line.candidate.vote, line.candidate.blocks
    more = "" if blocks is None else f", blocks of {blocks}"
    more = f", vote of {', '.join(map(str, vote))}" if vote else more
    return replace(summary, scheduler=f"{summary.scheduler}{more}")


def _row(line: Line[_Plain], output: Path | None) -> dict[str, Any]:
    """Returns a line as JSON-ready values."""
    figures, vote = record(line.measured), line.candidate.vote
    if vote:
        return {**figures, "vote": {"block_length": list(vote)}}
    return {**figures, "record": _record(line, output)}


def _record(line: Line[_Plain], output: Path | None) -> dict[str, Any]:
    """Returns all that should be published with a line's figures."""
    run = line.candidate.run
    known = {} if output is None else read_records(output)
    described = known.get(run.name) or run.record(line.candidate.problems)
    return full_record(run.name, described, line.results)


def _report(
    first: Run, lines: Sequence[Line[_Plain]], output: Path | None, as_json: bool, with_record: bool
) -> None:
    if as_json:
        print(json.dumps({"rows": [_row(line, output) for line in lines]}))
        return
    console, summaries = Terminal(), [_named(line) for line in lines]
    blocks = dict.fromkeys(it.candidate.blocks for it in lines if it.candidate.blocks is not None)
    count = max((summary.problems for summary in summaries), default=0)
    title = heading(first, count, list(blocks))
    console.print_table(_comparison(title, summaries))
    for line, summary in zip(lines, summaries, strict=True):
        for note in notes_of(summary):
            console.print(f"{line.name}: {note}", markup=False)
    for line in lines if with_record else ():
        if not line.candidate.vote:  # it has no answers of its own
            print(yaml.safe_dump(_record(line, output), sort_keys=False, allow_unicode=True))
    if not first.task.scored:
        say("Not scored: --run-code runs the code in a sandbox; the same command goes on.")


def _comparison(title: str, summaries: Sequence[Summary]) -> RichTable:
    """Returns one row a run, accuracy with its interval and what it cost; fits 80 columns."""
    table = empty_table(title)
    for name in ("scheduler", "cache"):
        table.add_column(name, min_width=6)
    numbers = ("accuracy", "95 %", "forwards", "tokens/\nforward", "tokens\nfed", "tokens/\nsecond")
    for name in numbers:
        table.add_column(name, justify="right")
    for summary in summaries:
        accuracy = accuracy_cells(summary) if summary.scored else ("-", "not scored")
        passes = f"{summary.forwards:.1f}", f"{summary.tokens_per_forward:.2f}"
        tokens = f"{summary.tokens_fed:.0f}", f"{summary.tokens_per_second:.0f}"
        table.add_row(summary.scheduler, summary.cache, *accuracy, *passes, *tokens)
    return table
