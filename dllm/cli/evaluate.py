"""`dllm eval`: accuracy and cost of methods on a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dllm.cli import constrained, options
from dllm.cli.loading import load_model, placed
from dllm.cli.ranks import follow_if_asked
from dllm.cli.rows import AtATime, choose_rows
from dllm.cli.shown import Terminal
from dllm.cli.shown.measured import (
    Bars,
    begin,
    interrupted,
    measure,
    measure_runs,
    printed,
    written,
)
from dllm.compatible import check
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.eval.ablation.lines import Line
from dllm.eval.ablation.read import gather
from dllm.eval.report.plot import draw_comparison
from dllm.eval.report.standings import Contender, contender, heading, records, table
from dllm.eval.report.tables import write_csv, write_markdown
from dllm.eval.run.processes import Processes, find_processes
from dllm.eval.run.results import RefusedError, sampled
from dllm.eval.run.run import Run
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import TaskOptions
from dllm.infilling.refused import without_refused


def evaluate(
    task: Annotated[
        str | None,
        Option(
            help="arithmetic, lists, functions, json, cpp_infilling, gsm8k, humaneval, "
            "json_mode_eval, own (with --data), parallel_bench or smiles; of two of them also a "
            "part, as in json:records,fields=2-5 or parallel_bench:shuffle,names=3-6; your own as "
            "module:Name or path/file.py:Name.",
            show_default="arithmetic",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        Option(
            help="JSON lines with the problems of cpp_infilling, gsm8k, humaneval, json_mode_eval "
            "or smiles; without --task your own questions and answers as .jsonl, .json or .csv.",
            show_default="the hub's",
        ),
    ] = None,
    question_field: Annotated[
        str | None, Option(help="Own data: the question's field.", show_default="a common name")
    ] = None,
    answer_field: Annotated[
        str | None, Option(help="Own data: the answer's field.", show_default="a common name")
    ] = None,
    judge: Annotated[
        str | None,
        Option(help="Own data: exact, number or choice.", show_default="by the answers"),
    ] = None,
    template: Annotated[
        str | None,
        Option(
            help='Own data: the prompt, such as "Q: {question}\\nA:".',
            show_default="by the style",
        ),
    ] = None,
    style: Annotated[
        str | None,
        Option(
            help="gsm8k: fewshot, cot, zeroshot, chat, ...; humaneval: base, instruct; "
            "parallel_bench, own, json: plain, chat.",
            show_default="the task's first",
        ),
    ] = None,
    examples: options.Examples = None,
    shots: Annotated[
        int | None,
        Option(help="Solved problems in each prompt.", show_default="the style's own number"),
    ] = None,
    run_code: options.RunCode = False,
    hole_tokens: options.HoleTokens = None,
    model: options.Model = "tiny",
    revision: options.Revision = None,
    scheduler: options.Schedulers = None,
    lineup: Annotated[
        str | None,
        Option(
            "--schedulers",
            help='"all", or a YAML file with the list to compare.',
            show_default="none",
        ),
    ] = None,
    cache: options.Caches = None,
    verifier: options.Verifier = None,
    limit: Annotated[int, Option(help="Problems of the held-out split.")] = 100,
    samples: Annotated[
        int, Option(help="Answers to each problem, for pass@k; above 1 with --temperature.")
    ] = 1,
    batch_size: AtATime = None,
    output: Annotated[
        Path | None,
        Option(
            help="JSON lines, one a problem; a stopped run goes on. With --schedulers or --plot "
            "a folder, which also gets the table as CSV and Markdown.",
            show_default="none",
        ),
    ] = None,
    trace: Annotated[
        bool, Option("--trace", help="Keep each row's steps in --output, for `dllm trace`.")
    ] = False,
    plot: Annotated[
        Path | None, Option(help="PNG: accuracy over tokens per forward.", show_default="none")
    ] = None,
    max_new_tokens: options.NewTokens = None,
    block_length: options.Block = None,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    regex: constrained.Pattern = None,
    json_schema: constrained.Schema = None,
    grammar: constrained.Grammar = None,
    grammar_method: constrained.Method = None,
    choice: constrained.Choices = None,
    joint: constrained.Joint = None,
    held: constrained.Held = True,
    settings: options.Set = None,
    config: options.Config = None,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    speed: options.Speed = "auto",
    family: options.Family = None,
    attention: options.Attention = None,
    tensor_parallel: options.TensorParallel = None,
    with_record: Annotated[
        bool, Option("--record", help="Print below the table all that belongs to its figures.")
    ] = False,
    fresh: options.Fresh = False,
    as_json: options.Json = False,
) -> None:
    """Measures every scheduler with every cache on the same problems.

    dllm eval -s fixed_quota -s threshold:0.9 -c none -c dual --limit 200 --output rows.jsonl

    dllm eval --schedulers all --limit 500 --output runs --plot pareto.png

    dllm eval --data own.jsonl --output own_rows.jsonl

    dllm eval --config mine.yaml --limit 200 --output rows.jsonl
    """
    processes = Processes() if tensor_parallel else find_processes()
    # A map is about all processes.
    place = placed(
        *(device if device_map else processes.device(device), device_map, revision),
        *(adapter, family, attention),
    )
    follow_if_asked(tensor_parallel, place, lambda: load_model(model, dtype, place, speed))
    _check_file(output, fresh=fresh, trace=trace)
    own = (question_field, answer_field, judge, template)
    name = task or ("arithmetic" if data is None and own == (None,) * 4 else "own")
    chosen = find_task(name, TaskOptions(data, style, examples, shots, run_code, *own, hole_tokens))
    problems = chosen.take(limit)
    given = constrained.constraint_of(regex, json_schema, grammar, choice, joint, grammar_method)
    named, compared = options.read_config(config), lineup is not None or plot is not None
    if compared:
        check_comparison(output, plot, alone=samples > 1 or with_record, scored=chosen.scored)
    entries = gather(lineup, scheduler or ()) if compared else []
    loaded = load_model(model, dtype, place, speed)
    shared = options.collect(
        settings, max_new_tokens, block_length, temperature, seed, verifier=verifier, **given
    )

    def run_of(one_scheduler: Any, one_cache: str | None) -> Run:
        parts = {**shared, **options.collect(None, scheduler=one_scheduler, cache=one_cache)}
        resolved = options.over(named, parts, without_refused(loaded.defaults, chosen.laid_out))
        if batch_size is not None and "batch_size" not in shared:  # so many, whatever a file says
            resolved = replace(resolved, batch_size=None)
        rows = choose_rows(batch_size, loaded, resolved, problems)
        return Run(loaded, chosen, resolved, rows, processes, trace, held)

    names: list[str | None] = [*cache] if cache else [None]
    if compared:
        pairs = [(entry, name) for entry in entries for name in names]
        contenders = [
            contender(n, e, run_of(e.scheduler, c), problems, names_cache=len(names) > 1)
            for n, (e, c) in enumerate(pairs, start=1)
        ]
        compare(contenders, output, plot, as_json, fresh=fresh)
        return
    runs = [run_of(one, name) for one in scheduler or (None,) for name in names]
    for run in runs:
        check(loaded, run.settings)
    measure_runs(
        runs,
        sampled(problems, samples, runs[0].settings),
        output,
        as_json,
        with_record,
        fresh=fresh,
    )


def _check_file(output: Path | None, **asked: bool) -> None:
    """Raises ValueError if something is asked of a results file, and there is none."""
    for name, is_asked in asked.items():
        if is_asked and output is None:
            raise ValueError(f"--{name} is for the results file: name it with --output")


def check_comparison(folder: Path | None, plot: Path | None, *, alone: bool, scored: bool) -> None:
    """Raises ValueError if a comparison could not be made or written."""
    if alone:
        raise ValueError("--samples and --record do not go with --schedulers and --plot")
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
