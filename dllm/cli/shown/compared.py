"""Schedulers compared on one task: measured, put beside each other, drawn and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dllm.cli import options
from dllm.cli.shown import Terminal
from dllm.cli.shown.measured import Bars, begin, interrupted, measure, printed, written
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.ablation.lines import Line
from dllm.eval.report.plot import draw_comparison
from dllm.eval.report.standings import Contender, heading, records, table
from dllm.eval.report.tables import write_csv, write_markdown
from dllm.eval.run.results import RefusedError


def check_comparison(folder: Path | None, plot: Path | None, *, alone: bool, scored: bool) -> None:
    """Raises ValueError if a comparison could not be made or written."""
    if alone:
        raise ValueError("--samples, --vote and --record do not go with --schedulers and --plot")
    if not scored:
        raise ValueError("a comparison needs scores, and this task has none without --run-code")
    if plot is not None and plot.suffix != ".png":
        raise ValueError(f"plot={plot} must end in .png")
    options.check_writable(plot, "--plot")
    if folder is not None and (folder.is_file() or folder.suffix == ".jsonl"):
        raise ValueError(
            f"output={folder} must be a folder: a comparison writes a file for each scheduler"
        )
    options.check_writable(folder and folder / "results.csv", "--output")


def compare(
    contenders: Sequence[Contender],
    folder: Path | None,
    plot: Path | None,
    as_json: bool,
    *,
    fresh: bool = False,
) -> None:
    """Measures all and reports; on Ctrl-C prints what is done and leaves the files alone.

    A folder gets a results file for each contender, and the tables.
    """
    names: dict[str, str] = {}
    for one in contenders:
        if one.run.name in names:
            twice = f"{names[one.run.name]!r} and {one.name!r}"
            raise ValueError(f"{twice} are the same setting: keep one of them")
        names[one.run.name] = one.name
    first = contenders[0]
    if first.run.processes.is_main and folder is not None:
        begin([(one.run, one.problems, folder / one.file) for one in contenders], fresh=fresh)
    bars = Bars(contenders, len(contenders), quiet=not first.run.processes.is_main)
    measured = measure(
        contenders,
        lambda one: one.run.results(one.problems, folder and folder / one.file),
        bars,
        (RefusedError, NotEnoughMemoryError),
    )
    if measured.error is not None:
        raise measured.error
    if not first.run.processes.is_main:
        return
    lines = [line for line in measured.lines if line.results or line.refusal is not None]
    caches = ", ".join(dict.fromkeys(one.cache for one in contenders))
    title = f"{heading(first.run, len(first.problems))}, cache {caches}"
    if lines and as_json:
        print(json.dumps({"title": title, "rows": records(lines)}))
    elif lines:
        console, shown = Terminal(), table(title, lines)
        console.print_table(printed(shown, console.width))
        console.print(shown.legend)
    if measured.stopped:
        interrupted(folder)
    _write(title, lines, folder, plot)
    refusals = [line.refusal for line in lines if line.refusal is not None]
    if len(refusals) == len(lines):
        raise ValueError(f"every scheduler refused, the first one because: {refusals[0]}")


def _write(
    title: str, lines: Sequence[Line[Contender]], folder: Path | None, plot: Path | None
) -> None:
    files: list[Path] = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        base, shown = folder / lines[0].candidate.run.task.name, table(title, lines)
        files += [base.with_suffix(".csv"), base.with_suffix(".md")]
        with options.naming(folder):
            write_csv(files[0], records(lines))
            write_markdown(files[1], [f"{title}.", shown.markdown(), shown.legend])
    with options.naming(plot):
        if plot is not None and draw_comparison(plot, title, lines):
            files.append(plot)
    written(files)
