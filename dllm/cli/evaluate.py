"""`dllm eval`: accuracy and cost of methods on a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dllm import cache as caches
from dllm import load, schedulers
from dllm.cli.options import (
    BlockOption,
    CachesOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    NewTokensOption,
    SchedulersOption,
    SeedOption,
    SetOption,
    TemperatureOption,
    given,
)
from dllm.cli.table import comparison
from dllm.eval.problem import Problem
from dllm.eval.runner import Result, Run
from dllm.eval.summary import Summary, short, summarise
from dllm.eval.tasks import find_task
from dllm.generate import check
from dllm.settings import resolve

INTERRUPTED = 130


def evaluate(
    task: Annotated[str, typer.Option(help="arithmetic, lists or functions.")] = "arithmetic",
    model: ModelOption = "tiny",
    scheduler: SchedulersOption = None,
    cache: CachesOption = None,
    limit: Annotated[int, typer.Option(help="Problems of the held-out split.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together.")] = 50,
    output: Annotated[
        Path | None, typer.Option(help="JSON lines, one a problem; a stopped run goes on.")
    ] = None,
    max_new_tokens: NewTokensOption = None,
    block_length: BlockOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measures every scheduler with every cache on the same problems.

    dllm eval -s fixed_quota -s threshold:0.9 -c none -c dual --limit 200 --output rows.jsonl
    """
    chosen = find_task(task)
    problems = chosen.take(limit)
    loaded = load(model, dtype=dtype, device=device)
    shared = given(
        settings,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
    )
    runs = []
    all_schedulers: list[str | None] = [*scheduler] if scheduler else [None]
    all_caches: list[str | None] = [*cache] if cache else [None]
    for one_scheduler in all_schedulers:
        for one_cache in all_caches:
            options = given(None, scheduler=one_scheduler, cache=one_cache)
            resolved = resolve(loaded.defaults, None, {**shared, **options})
            check(loaded, resolved)
            runs.append(Run(loaded, chosen, resolved, batch_size))
    compare(runs, problems, output, as_json)


def compare(
    runs: Sequence[Run], problems: Sequence[Problem], output: Path | None, as_json: bool
) -> None:
    """Runs all and prints the table, or JSON; on Ctrl-C what is done so far."""
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    right = TextColumn("{task.fields[right]:.0%} right")
    summaries: list[Summary] = []
    stopped = False
    with Progress(*columns, right, TimeRemainingColumn(), console=console) as progress:
        for run in runs:
            bar = progress.add_task(_label(run), total=len(problems), right=0.0)
            results: list[Result] = []
            try:
                for result in run.results(problems, output):
                    results.append(result)
                    share = sum(r.correct for r in results) / len(results)
                    progress.update(bar, advance=1, right=share)
            except KeyboardInterrupt:
                stopped = True
            if results:
                summaries.append(summarise(results))
            if stopped:
                break
    _report(runs, summaries, as_json)
    if stopped:
        kept = f"; {output} is kept and the same command goes on" if output else ""
        console.print(f"interrupted{kept}")
        raise typer.Exit(INTERRUPTED)


def _report(runs: Sequence[Run], summaries: Sequence[Summary], as_json: bool) -> None:
    if as_json:
        record: dict[str, Any] = {"rows": [asdict(summary) for summary in summaries]}
        print(json.dumps(record))
        return
    settings, count = runs[0].settings, max((s.problems for s in summaries), default=0)
    title = (
        f"{runs[0].task.name}: {count} held-out problems, {runs[0].model.name}, "
        f"{settings.max_new_tokens} new tokens, blocks of {settings.block_length}, "
        f"batch {runs[0].batch_size}"
    )
    Console(highlight=False).print(comparison(title, summaries))


def _label(run: Run) -> str:
    described = run.describe()
    scheduler = short(described["scheduler"], schedulers.registry)
    return f"{scheduler} / {short(described['cache'], caches.registry)}"
