"""`dllm verify`: what a verifier saves and costs, and whether it changes anything."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table
from typer import Option

from dllm.cli import constrained, options
from dllm.cli.chosen import collect, constraint_of
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import Terminal
from dllm.decoding.speculation import verifiers
from dllm.eval.compare.verification import Divergence, Trial, Verification, summed
from dllm.eval.tasks import find_task
from dllm.models.model import DenoisingModel
from dllm.settings import resolve

STEADY = "fixed_quota"  # one token a step: there drafts have the most to save
DIFFERENT = 1  # exit code
_LISTED = 10  # divergences


def verify(
    model: options.Model = "tiny",
    revision: options.Revision = None,
    verifier: Annotated[
        str, Option("--verifier", "-v", help='"ssd:draft_length=4", "freedave:4" or "linear".')
    ] = "ssd",
    scheduler: Annotated[
        str | None,
        Option(
            *("--scheduler", "-s"),
            help='Whose schedule steps are drafted ahead; "linear" drafts none.',
            show_default=STEADY,
        ),
    ] = None,
    cache: options.Cache = None,
    task: Annotated[str, Option(help="Whose held-out problems are decoded.")] = "arithmetic",
    limit: Annotated[int, Option(help="Problems at most.")] = 20,
    batch_size: options.Together = 1,
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
    settings: options.Set = None,
    dtype: options.Dtype = None,
    adapter: options.Adapter = None,
    draft_adapter: options.DraftAdapter = None,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    as_json: options.Json = False,
) -> None:
    """Decodes problems without and with a verifier and compares them token by token.

    Exits with 1 if any row differs. That is a fault in float64; in narrower types a batch of
    another size may round otherwise, which the margin at the first difference shows.

    A schedule of one token a step has most to save; thresholds have taken much of it already.

    dllm verify --scheduler fixed_quota --verifier ssd:draft_length=4 --limit 20
    """
    held = constraint_of(regex, json_schema, grammar, choice, joint, grammar_method)
    parts = {"verifier": verifier, "scheduler": scheduler, "cache": cache, **held}
    chosen = collect(settings, max_new_tokens, block_length, temperature, seed, **parts)
    if not verifiers.registry.create(verifier).base:  # else it says itself what it is compared with
        chosen.setdefault("scheduler", STEADY)
    problems = find_task(task).take(limit)
    place = placed(device, device_map, revision, adapter, draft_adapter=draft_adapter)
    loaded = load_model(model, dtype, place)
    resolved = resolve(loaded.defaults, None, chosen)
    trial = Trial(loaded, [problem.given for problem in problems], resolved, batch_size)
    errors, count = Terminal(stderr=True), -(-len(problems) // batch_size)
    result = summed(list(track(trial.parts(), "twice each", count, console=errors)))
    if as_json:
        print(json.dumps({**asdict(result), "steps_per_forward": result.steps_per_forward}))
    else:
        _report(result, verifier, loaded)
    if result.divergences:
        raise typer.Exit(DIFFERENT)


def _report(result: Verification, verifier: str, model: DenoisingModel) -> None:
    console = Terminal()
    table = Table(box=SIMPLE_HEAD, title=f"{result.num_prompts} prompts", title_justify="left")
    table.add_column("")
    for head in ("forwards", "row-forwards", "rows fed", "seconds"):
        table.add_column(head, justify="right")
    base, verified = astuple(result.base), astuple(result.verified)
    for name, (*counts, seconds) in (("without", base), (verifier, verified)):
        table.add_row(name, *map(str, counts), f"{seconds:.2f}")
    pairs = zip(base, verified, strict=True)
    table.add_row("ratio", *(f"{after / before:.2f}" if before else "-" for before, after in pairs))
    console.print_table(table)
    console.print(_saving(result))
    counted = ", ".join(f"{steps}: {n}" for steps, n in enumerate(result.accepted, start=1))
    console.print(
        f"steps certain after a forward, and how often: {counted}; "
        f"mean {result.steps_per_forward:.2f}",
        f"the same tokens: {result.same_tokens} of {result.num_tokens}; "
        f"rows without any difference: {result.same_rows} of {result.num_prompts}",
        sep="\n",
    )
    for one in result.divergences[:_LISTED]:
        console.print(_said(one, model), markup=False, soft_wrap=True)
    if len(result.divergences) > _LISTED:
        console.print(f"... and {len(result.divergences) - _LISTED} more")


def _saving(result: Verification) -> str:
    """Returns in words what the verifier saves, and what that costs."""
    base, verified = result.base, result.verified
    saved = base.forwards - verified.forwards
    share = saved / base.forwards if base.forwards else 0.0
    fed = verified.rows_fed / base.rows_fed if base.rows_fed else 0.0
    return (
        f"saved: {saved} of {base.forwards} forwards ({share:.0%}), for {fed:.2f} times the rows "
        "fed; it pays where a forward of more rows costs little more"
    )


def _said(one: Divergence, model: DenoisingModel) -> str:
    tokens = [str(token) for token in (one.token, one.other)]
    if model.tokenizer is not None:
        tokens = [repr(model.tokenizer.decode([token])) for token in (one.token, one.other)]
    return (
        f"prompt {one.prompt} first differs in step {one.step} at place {one.place}: {tokens[0]} "
        f"without, {tokens[1]} with; margin of the two best tokens there {one.margin:.2g}"
    )
