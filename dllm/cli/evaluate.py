"""`dllm eval`: accuracy and cost of methods on a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dllm import load
from dllm.cli.compare import Comparison, Destination
from dllm.cli.measure import compare
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
    SpeedOption,
    TemperatureOption,
    VerifierOption,
    given,
)
from dllm.compatible import check
from dllm.eval.report.candidate import contender
from dllm.eval.report.schedulers_list import gather
from dllm.eval.run.processes import find_processes
from dllm.eval.run.results import sampled
from dllm.eval.run.run import Run
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import TaskOptions
from dllm.settings import resolve


def evaluate(
    task: Annotated[
        str,
        typer.Option(
            help="arithmetic, lists, functions, gsm8k, humaneval or parallel_bench; of this one "
            "also a part, as in parallel_bench:shuffle,names=3-6."
        ),
    ] = "arithmetic",
    data: Annotated[
        Path | None,
        typer.Option(help="JSON lines with the problems of gsm8k or humaneval; else the hub's."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="gsm8k: fewshot, cot, zeroshot, chat, ...; humaneval: base, instruct; "
            "parallel_bench: plain, chat."
        ),
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
    samples: Annotated[
        int, typer.Option(help="Answers to each problem, for pass@k; above 1 with --temperature.")
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(help="Rows decoded at a time; other problems wait.")
    ] = 50,
    output: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines, one a problem; a stopped run goes on. With --schedulers or --plot "
            "a folder, which also gets the table as CSV and Markdown."
        ),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Keep each row's steps in --output, for `dllm trace`.")
    ] = False,
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
    speed: SpeedOption = None,
    with_record: Annotated[
        bool,
        typer.Option("--record", help="Print below the table all that belongs to its figures."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measures every scheduler with every cache on the same problems.

    dllm eval -s fixed_quota -s threshold:0.9 -c none -c dual --limit 200 --output rows.jsonl

    dllm eval --schedulers all --limit 500 --output runs --plot pareto.png
    """
    if trace and output is None:
        raise ValueError("--trace keeps the steps in the results file: name it with --output")
    chosen = find_task(task, TaskOptions(data, style, examples, shots, run_code))
    problems = chosen.take(limit)
    compared = lineup is not None or plot is not None
    if compared and (samples > 1 or with_record):
        raise ValueError("--samples and --record do not go with --schedulers and --plot")
    if compared and not chosen.scored:
        raise ValueError(f"a comparison needs scores, and {task} has none without --run-code")
    entries = gather(lineup, scheduler or ()) if compared else []
    to = Destination(output, plot, as_json) if compared else None
    processes = find_processes()
    loaded = load(model, dtype=dtype, device=processes.device(device), speed=speed)
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
        return Run(loaded, chosen, resolved, batch_size, processes, trace)

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
    problems = sampled(problems, samples, runs[0].settings)
    compare(runs, problems, output, as_json, with_record)
