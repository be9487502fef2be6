"""`dllm eval`: accuracy and cost of methods on a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dllm import load
from dllm.capacity import NotEnoughMemoryError
from dllm.cli.compare import Comparison, Destination
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
    VerifierOption,
    given,
)
from dllm.cli.progress import bars, shown
from dllm.cli.table import comparison
from dllm.eval.contender import contender
from dllm.eval.lineup import gather
from dllm.eval.problem import Problem
from dllm.eval.report import heading, label
from dllm.eval.results import Result
from dllm.eval.runner import Run
from dllm.eval.summary import Summary, record, summarise
from dllm.eval.task_options import TaskOptions
from dllm.eval.tasks import find_task
from dllm.generate import check
from dllm.settings import resolve

INTERRUPTED = 130


def evaluate(
    task: Annotated[
        str, typer.Option(help="arithmetic, lists, functions, gsm8k or humaneval.")
    ] = "arithmetic",
    data: Annotated[
        Path | None,
        typer.Option(help="JSON lines with the problems of gsm8k or humaneval; else the hub's."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(help="gsm8k: fewshot, cot, zeroshot, chat, ...; humaneval: base, instruct."),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="JSON lines with solved problems for gsm8k's prompts.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Solved problems in each prompt; the style's own number.")
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Run model-written code, in a sandbox, to score it."),
    ] = False,
    model: ModelOption = "tiny",
    scheduler: SchedulersOption = None,
    lineup: Annotated[
        str | None,
        typer.Option("--schedulers", help='"all", or a YAML file with the list to compare.'),
    ] = None,
    cache: CachesOption = None,
    verifier: VerifierOption = None,
    limit: Annotated[int, typer.Option(help="Problems of the held-out split.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together.")] = 50,
    output: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines, one a problem; a stopped run goes on. With --schedulers or --plot "
            "a folder, which also gets the table as CSV and Markdown."
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG: accuracy over tokens per forward.")
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

    dllm eval --schedulers all --limit 500 --output runs --plot pareto.png
    """
    chosen = find_task(task, TaskOptions(data, style, examples, shots, run_code))
    problems = chosen.take(limit)
    compared = lineup is not None or plot is not None
    if compared and not chosen.scored:
        raise ValueError(f"a comparison needs scores, and {task} has none without --run-code")
    entries = gather(lineup, scheduler or ()) if compared else []
    to = Destination(output, plot, as_json) if compared else None
    loaded = load(model, dtype=dtype, device=device)
    shared = given(
        settings,
        verifier=verifier,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
    )

    def run_of(one_scheduler: Any, one_cache: str | None) -> Run:
        options = given(None, scheduler=one_scheduler, cache=one_cache)
        resolved = resolve(loaded.defaults, None, {**shared, **options})
        return Run(loaded, chosen, resolved, batch_size)

    caches_given: list[str | None] = [*cache] if cache else [None]
    named: list[str | None] = [*scheduler] if scheduler else [None]
    if to is not None:
        contenders = [
            contender(e, run_of(e.scheduler, c), names_cache=len(caches_given) > 1)
            for e in entries
            for c in caches_given
        ]
        Comparison(contenders, problems, to).run()
        return
    runs = [run_of(s, c) for s in named for c in caches_given]
    for run in runs:
        check(loaded, run.settings)
    compare(runs, problems, output, as_json)


def compare(
    runs: Sequence[Run], problems: Sequence[Problem], output: Path | None, as_json: bool
) -> None:
    """Runs all and prints the table, or JSON; on Ctrl-C, or without memory, what is done so far."""
    summaries: list[Summary] = []
    stopped, failed = False, None
    with bars() as progress:
        for run in runs:
            results: list[Result] = []
            try:
                found = run.results(problems, output)
                for result in shown(progress, label(run), found, len(problems)):
                    results.append(result)
            except KeyboardInterrupt:
                stopped = True
            except NotEnoughMemoryError as error:
                failed = error
            if results:
                summaries.append(summarise(results))
            if stopped or failed is not None:
                break
    _report(runs, summaries, as_json)
    if failed is not None:
        raise failed
    if stopped:
        kept = f"; {output} is kept and the same command goes on" if output else ""
        Console(stderr=True).print(f"interrupted{kept}")
        raise typer.Exit(INTERRUPTED)


def _report(runs: Sequence[Run], summaries: Sequence[Summary], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"rows": [record(summary) for summary in summaries]}))
        return
    title = heading(runs[0], max((s.problems for s in summaries), default=0))
    Console(highlight=False).print(comparison(title, summaries))
    for run, summary in zip(runs, summaries, strict=False):
        if summary.scores:
            shares = ", ".join(f"{name} {part:.1%}" for name, part in summary.scores.items())
            Console(highlight=False).print(f"{label(run)}: {shares}", markup=False)
    if not runs[0].task.scored:
        note = "Not scored: --run-code runs the code in a sandbox; the same command goes on."
        Console(stderr=True).print(note)
