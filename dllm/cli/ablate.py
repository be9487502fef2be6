"""`dllm ablate`: a configuration's runs, one after the other, and their report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dllm.cli import defaults, options
from dllm.cli.loading import devices
from dllm.cli.shown import Terminal, say, say_there
from dllm.cli.shown.measured import Bars, Measurement, interrupted, measure, printed, written
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.ablation.ablation import Ablation, with_files, with_model
from dllm.eval.ablation.bench import Bench, Trial, by_model, locked, trials_of
from dllm.eval.ablation.lines import Line
from dllm.eval.ablation.read import find_config, read_ablation, shipped
from dllm.eval.report.ablation import Report, differences
from dllm.eval.report.page import write
from dllm.eval.run.results import RefusedError
from dllm.options import Count, CountOrNone, checked

# What ends a run and not the ablation.
FAILURES = (RefusedError, NotEnoughMemoryError, BrokenLogitsError)


def ablate(
    config: Annotated[
        str | None, Argument(help="A YAML file, or the name of one that --list lists.")
    ] = None,
    list_all: Annotated[
        bool, Option("--list", help="List the configurations that come with dllm.")
    ] = False,
    output: Annotated[
        Path | None, Option(help="Folder of results and report.", show_default="runs/ablate-NAME")
    ] = None,
    limit: Annotated[
        int | None, Option(help="Problems a run.", show_default="the configuration's")
    ] = None,
    data: Annotated[
        list[str] | None,
        Option(help="gsm8k=FILE or humaneval=FILE, JSON lines.", show_default="the hub's"),
    ] = None,
    examples: options.Examples = None,
    run_code: options.RunCode = False,
    model: Annotated[
        str | None,
        Option(
            *("--model", "-m"),
            help="Another model than the configuration's.",
            show_default="the configuration's",
        ),
    ] = None,
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    compare: Annotated[
        Path | None,
        Option(help="Folder of an earlier ablation to set this one beside.", show_default="none"),
    ] = None,
    problems: Annotated[
        int, Option(help="Problems a task that report.html shows; 0 keeps no traces.")
    ] = defaults.SHOWN,
    fresh: options.Fresh = False,
    as_json: options.Json = False,
) -> None:
    """Measures models, schedulers, caches and verifiers together and writes a report.

    dllm ablate quickstart

    dllm ablate mine.yaml --output runs/mine --limit 200 --compare runs/last-week
    """
    if list_all:
        _list(as_json)
        return
    checked("limit", limit, Count | None)
    checked("problems", problems, CountOrNone)
    ablation = with_model(_read(config), model, revision, adapter)
    ablation = with_files(ablation, data or (), examples)
    trials = trials_of(ablation, limit, run_code=run_code)
    folder = output or Path("runs") / f"ablate-{ablation.name}"
    if folder.is_file():
        raise ValueError(f"--output {folder} must be a folder")
    options.check_writable(folder / "report.html", "--output")
    if compare is not None:
        differences((), compare)  # a wrong folder is better known before the runs than after
    with locked(folder):
        bench = Bench(folder, device, devices(device_map), keep_trace=problems > 0, fresh=fresh)
        _begin(bench, trials)
        measured = _measure(bench, trials)
        _check(measured)
        beside = None if compare is None else differences(measured.lines, compare)
        report = Report(ablation, measured.lines, bench.starts(measured.lines), beside)
        files = write(folder, report, problems)
        _print(report, files, as_json)
    if measured.stopped:
        interrupted(folder)


def _read(config: str | None) -> Ablation:
    if config is None:
        raise ValueError("name a configuration: a YAML file, or one that --list lists")
    return read_ablation(find_config(config))


def _begin(bench: Bench, trials: list[Trial]) -> None:
    """Says what was set aside, what is there already, and what has to be made again."""
    for one in bench.aside:
        say(f"kept what was there as {one}")
    there, total = sum(map(bench.there, trials)), sum(len(one.problems) for one in trials)
    say_there(there, total, bench.folder)
    if changed := [trial.name for trial in trials if bench.is_changed(trial)]:
        say(
            f"measured anew, since the code, the checkpoint, the settings or the version of dllm "
            f"are not those of the results in {bench.folder}: {', '.join(changed)}"
        )


def _measure(bench: Bench, trials: list[Trial]) -> Measurement[Trial]:
    """Returns a line for each trial, in their order; what is there already is not run again."""
    lines = {trial.number: line for trial in trials if (line := bench.finished(trial)) is not None}
    left = by_model([trial for trial in trials if trial.number not in lines])
    measured = measure(left, bench.results, Bars(left, len(trials), quiet=False), FAILURES)
    lines |= {line.number: line for line in measured.lines}
    ordered = [lines.get(trial.number, Line(trial)) for trial in trials]
    return Measurement(ordered, measured.stopped, measured.error)


def _check(measured: Measurement[Trial]) -> None:
    if measured.error is not None:
        raise measured.error
    refusals = [f"{line.name}: {line.refusal}" for line in measured.lines if line.refusal]
    nothing = not any(line.results for line in measured.lines)
    if nothing and not measured.stopped and len(refusals) == len(measured.lines):
        raise ValueError("every run was refused:\n" + "\n".join(refusals))


def _print(report: Report, files: Sequence[Path], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rows": report.records()}))
        return
    console = Terminal()
    for table in report.tables():
        console.print_table(printed(table))
        console.print(table.legend, markup=False, style="dim")
    written(files)


def _list(as_json: bool) -> None:
    ablations = [read_ablation(path) for path in shipped().values()]
    if as_json:
        rows = [{"name": a.name, "about": a.about, "runs": len(a.rows)} for a in ablations]
        print(json.dumps({"rows": rows}))
        return
    widest = max(len(one.name) for one in ablations)
    for one in ablations:
        print(f"{one.name:<{widest}}  {one.about} ({len(one.rows)} runs)")
