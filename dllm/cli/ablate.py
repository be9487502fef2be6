"""`dllm ablate`: a configuration's runs, one after the other, and their report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dllm.cli.ablate_progress import measure
from dllm.cli.options import DeviceOption, JsonOption
from dllm.cli.paths import check_writable
from dllm.eval.ablation.ablation import Ablation
from dllm.eval.ablation.bench import Bench, Outcome, trials_of
from dllm.eval.ablation.changes import with_files, with_model
from dllm.eval.ablation.config import find_config, read_ablation, shipped
from dllm.eval.ablation.lock import locked
from dllm.eval.report.ablation import Report, record
from dllm.eval.report.differences import differences
from dllm.eval.report.files import write
from dllm.eval.report.lines import lines_of
from dllm.eval.report.page import KEPT
from dllm.eval.report.tables import tables

INTERRUPTED = 130


def ablate(
    config: Annotated[
        str | None, typer.Argument(help="A YAML file, or the name of one that --list lists.")
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the configurations that come with dllm.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of results and report; runs/ablate-NAME unless given."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Problems a run; the configuration's unless given.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="gsm8k=FILE or humaneval=FILE, JSON lines; the hub's unless given."),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="JSON lines with solved problems for gsm8k's prompts.")
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Run model-written code, in a sandbox, to score it."),
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Another model than the configuration's.")
    ] = None,
    device: DeviceOption = None,
    compare: Annotated[
        Path | None, typer.Option(help="Folder of an earlier ablation to set this one beside.")
    ] = None,
    problems: Annotated[
        int, typer.Option(min=0, help="Problems a task that report.html shows; 0 keeps no traces.")
    ] = KEPT,
    as_json: JsonOption = False,
) -> None:
    """Measures models, schedulers, caches and verifiers together and writes a report.

    dllm ablate quickstart

    dllm ablate mine.yaml --output runs/mine --limit 200 --compare runs/last-week
    """
    if list_all or config is None:
        if not list_all:
            raise ValueError("name a configuration: a YAML file, or one that --list lists")
        _list(as_json)
        return
    path = find_config(config)
    ablation = with_files(with_model(read_ablation(path), model), data or (), examples)
    trials = trials_of(ablation, limit, run_code=run_code)
    folder = output or Path("runs") / f"ablate-{ablation.name}"
    if folder.is_file():
        raise ValueError(f"--output {folder} must be a folder")
    check_writable(folder / "report.html", "--output")
    if compare is not None:
        differences((), compare)  # a wrong folder is better known before the runs than after
    with locked(folder):
        bench = Bench(folder, device, keep_trace=problems > 0)
        outcomes, stopped = measure(bench, trials)
        _report(ablation, outcomes, Target(folder, compare, problems, as_json, stopped))
    if stopped:
        Console(stderr=True).print(f"interrupted; {folder} is kept and the same command goes on")
        raise typer.Exit(INTERRUPTED)


class Target:
    """Where a report goes and what it holds."""

    def __init__(
        self, folder: Path, compare: Path | None, problems: int, as_json: bool, stopped: bool
    ) -> None:
        self.folder, self.compare, self.problems = folder, compare, problems
        self.as_json, self.stopped = as_json, stopped


def _report(ablation: Ablation, outcomes: Sequence[Outcome], to: Target) -> None:
    refusals = [f"{o.trial.row.name}: {o.refusal}" for o in outcomes if o.refusal]
    if not to.stopped and len(refusals) == len(outcomes) and not any(o.results for o in outcomes):
        raise ValueError("every run was refused:\n" + "\n".join(refusals))
    lines = lines_of(ablation, outcomes)
    compared = None if to.compare is None else differences(lines, to.compare)
    report = Report(ablation, lines, compared)
    written = write(to.folder, report, to.problems)
    if to.as_json:
        leaders = report.leaders
        print(json.dumps({"rows": [record(line, leads=line.number in leaders) for line in lines]}))
        return
    from dllm.cli.ablate_table import printed

    console = Console(highlight=False)
    for heading, table, legend in tables(report):
        console.print(printed(heading, table))
        console.print(legend, markup=False, style="dim")
    names = ", ".join(map(str, written))
    Console(stderr=True).print(f"written: {names}", markup=False, soft_wrap=True)


def _list(as_json: bool) -> None:
    found = [read_ablation(path) for path in shipped().values()]
    if as_json:
        rows = [{"name": a.name, "about": a.about, "runs": len(a.rows)} for a in found]
        print(json.dumps({"rows": rows}))
        return
    console, widest = Console(highlight=False), max(len(one.name) for one in found)
    for one in found:
        said = f"{one.name:<{widest}}  {one.about} ({len(one.rows)} runs)"
        console.print(said, markup=False, soft_wrap=True)
