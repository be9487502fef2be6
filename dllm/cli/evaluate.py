"""`dllm eval`: accuracy and cost of methods on a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from dllm.cli import constrained, options
from dllm.cli.chosen import collect, constraint_of, over, read_config
from dllm.cli.loading import load_model, placed, with_recipe
from dllm.cli.ranks import follow_if_asked
from dllm.cli.rows import choose_rows
from dllm.cli.shown.alone import measure_runs
from dllm.cli.shown.compared import check_comparison, compare
from dllm.compatible import check
from dllm.eval.ablation.read import gather
from dllm.eval.report.standings import contender
from dllm.eval.run.processes import Processes, find_processes
from dllm.eval.run.results import sampled
from dllm.eval.run.run import Run
from dllm.eval.run.vote import read_vote
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import Task, TaskOptions
from dllm.infilling.refused import without_refused

Vote = Annotated[
    str | None,
    Option(
        "--vote",
        help="Decode each problem in blocks of several lengths and count the most frequent answer "
        "(HEX): block_length=8,16,32.",
        show_default="none",
    ),
]
HoleTokens = Annotated[
    str | None,
    Option(
        help="cpp_infilling: tokens of each hole: a number, several to choose from (4,8,16), auto, "
        "or cal.",
        show_default="auto",
    ),
]


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
    hole_tokens: HoleTokens = None,
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
    vote: Vote = None,
    samples: Annotated[
        int, Option(help="Answers to each problem, for pass@k; above 1 with --temperature.")
    ] = 1,
    batch_size: options.AtATime = None,
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
    recipe: options.Recipe = None,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    draft_adapter: options.DraftAdapter = None,
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
        *(adapter, family, attention, draft_adapter),
    )
    follow_if_asked(tensor_parallel, place, lambda: load_model(model, dtype, place, speed))
    _check_file(output, fresh=fresh, trace=trace)
    own = (question_field, answer_field, judge, template)
    name = task or ("arithmetic" if data is None and own == (None,) * 4 else "own")
    chosen = find_task(name, TaskOptions(data, style, examples, shots, run_code, *own, hole_tokens))
    problems = chosen.take(limit)
    given = constraint_of(regex, json_schema, grammar, choice, joint, grammar_method)
    named, compared = read_config(config), lineup is not None or plot is not None
    if compared:
        check_comparison(
            output,
            plot,
            alone=samples > 1 or with_record or vote is not None,
            scored=chosen.scored,
        )
    entries = gather(lineup, scheduler or ()) if compared else []
    loaded = load_model(model, dtype, place, speed)
    named = with_recipe(named, recipe, loaded, name)
    shared = collect(
        settings, max_new_tokens, block_length, temperature, seed, verifier=verifier, **given
    )
    lengths = _lengths(vote, chosen, samples, shared)

    def run_of(one_scheduler: Any, one_cache: str | None, length: int | None = None) -> Run:
        parts = {
            **shared,
            **collect(None, scheduler=one_scheduler, cache=one_cache, block_length=length),
        }
        resolved = over(named, parts, without_refused(loaded.defaults, chosen.laid_out))
        if batch_size is not None and "batch_size" not in shared:  # so many, whatever a file says
            resolved = replace(resolved, batch_size=None)
        rows = choose_rows(batch_size, loaded, resolved, problems)
        return Run(loaded, chosen, resolved, rows, processes, trace, held)

    names: list[str | None] = [*cache] if cache else [None]
    if compared:
        contenders = [
            contender(n, e, run_of(e.scheduler, c), problems, names_cache=len(names) > 1)
            for n, (e, c) in enumerate(product(entries, names), start=1)
        ]
        compare(contenders, output, plot, as_json, fresh=fresh)
        return
    runs = _checked(
        [run_of(*one) for one in product(scheduler or (None,), names, lengths or (None,))]
    )
    measure_runs(
        runs,
        sampled(problems, samples, runs[0].settings),
        output,
        as_json,
        with_record,
        fresh=fresh,
        vote=lengths,
    )


def _checked(runs: list[Run]) -> list[Run]:
    """Returns runs; raises ValueError for parts that do not go together, before any is measured."""
    for run in runs:
        check(run.model, run.settings)
    return runs


def _lengths(
    vote: str | None, task: Task, samples: int, shared: Mapping[str, Any]
) -> tuple[int, ...]:
    """Returns the block lengths of a vote, none without one."""
    if vote is None:
        return ()
    if samples > 1 or "block_length" in shared:
        raise ValueError(
            f"vote={vote!r} takes one answer of each block length: leave --samples and "
            "--block-length out"
        )
    return read_vote(vote, task)


def _check_file(output: Path | None, **asked: bool) -> None:
    """Raises ValueError if something is asked of a results file, and there is none."""
    for name, is_asked in asked.items():
        if is_asked and output is None:
            raise ValueError(f"--{name} is for the results file: name it with --output")
