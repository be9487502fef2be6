"""`dllm tune`: searches the settings that cost least above a floor of accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dllm.cli import options
from dllm.cli.chosen import collect
from dllm.cli.loading import load_model, placed
from dllm.cli.shown import Terminal, say
from dllm.cli.shown.measured import interrupted, printed, progress, written
from dllm.eval.ablation.bench import locked
from dllm.eval.report.ablation import Report
from dllm.eval.report.page import write
from dllm.eval.run.results import set_aside
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import TaskOptions
from dllm.options import Range, checked
from dllm.recipes import Recipe
from dllm.tuning.arm import checked_cost
from dllm.tuning.floor import Floor
from dllm.tuning.problems import Sizes
from dllm.tuning.race import Race
from dllm.tuning.report import race_table, report_of
from dllm.tuning.space import Choice
from dllm.tuning.tune import STATE, Found, Question, Search
from dllm.tuning.verdict import recipe_of

Forwards = Annotated[float, Range(1, 1e12)]
Minutes = Annotated[float, Range(0, 1e5, above=True)]
Problems = Annotated[int, Range(32, 10**6)]
Rows = Annotated[int, Range(1, 2**12)]
_UNSHOWN = (
    "no setting was shown to be above the floor on fresh problems, so one token a forward is "
    "named: give more --budget and --confirm, or a lower --floor"
)
_WORDS = {"holds": "holds", "broken": "is broken", "open": "is neither shown nor refuted"}


def tune(
    model: Annotated[
        str, Argument(help='"tiny", a checkpoint folder or a hub id.', show_default="tiny")
    ] = "tiny",
    task: Annotated[str, Option(help="As for `dllm eval`.")] = "arithmetic",
    data: Annotated[
        Path | None, Option(help="Its problems, as for `dllm eval`.", show_default="the hub's")
    ] = None,
    budget: Annotated[
        float | None,
        Option(help="Forwards of a row to spend.", show_default="what --minutes are worth"),
    ] = None,
    minutes: Annotated[
        float, Option(help="Becomes forwards when the first problems were measured.")
    ] = 15.0,
    floor: Annotated[
        str, Option(help='"accuracy >= 0.98 * stepwise" or "accuracy >= 0.9".')
    ] = "accuracy >= 0.98 * stepwise",
    cost: Annotated[
        str, Option(help="To be low: forwards (of rows), passes, seconds or flops.")
    ] = "forwards",
    limit: Annotated[int, Option(help="Problems that settings race on, at most.")] = 512,
    confirm: Annotated[int, Option(help="Fresh problems that decide, at most.")] = 1024,
    unseen: Annotated[int, Option(help="Problems that measure what is found, at most.")] = 300,
    batch_size: Annotated[int, Option("--batch-size", help="Rows decoded at a time.")] = 32,
    max_new_tokens: options.NewTokens = None,
    settings: options.Set = None,
    seed: Annotated[int, Option(min=0, max=2**31, help="Of the problems and the search.")] = 0,
    output: Annotated[
        Path | None,
        Option(
            help="Folder for results, report and recipe.json; a stopped search goes on.",
            show_default="runs/tune-TASK",
        ),
    ] = None,
    run_code: options.RunCode = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    speed: options.Speed = "auto",
    fresh: options.Fresh = False,
    as_json: options.Json = False,
) -> None:
    """Searches the settings that cost least above a floor of accuracy.

    dllm tune tiny --task arithmetic --budget 40000 --output runs/tune

    dllm tune tiny --floor "accuracy >= 0.95" --minutes 5
    """
    for name, value, hint in (
        *(("budget", budget, Forwards | None), ("minutes", minutes, Minutes)),
        *(("limit", limit, Problems), ("confirm", confirm, Problems)),
        *(("unseen", unseen, Problems), ("batch_size", batch_size, Rows)),
    ):
        checked(name, value, hint)
    wanted, counted = Floor.parse(floor), checked_cost(cost)
    folder = output or Path("runs") / f"tune-{task.partition(':')[0]}"
    options.check_writable(folder / "recipe.json", "--output")
    chosen = find_task(task, TaskOptions(data, run_code=run_code))
    fixed = collect(settings, max_new_tokens)
    loaded = load_model(model, dtype, placed(device, None, None, None), speed)
    question = Question(
        *(loaded, chosen, fixed, counted, wanted, budget, minutes),
        *(Sizes(limit, confirm, unseen), batch_size, seed),
    )
    if fresh and (aside := set_aside(folder)) is not None:
        say(f"kept what was there as {aside}")
    with locked(folder):
        found = _search(question, folder)
        recipe = recipe_of(question, found)
        files = _write(folder, recipe, report_of(question, found))
        _print(found, recipe, files, as_json)


def _search(question: Question, folder: Path) -> Found:
    """Runs the search under one bar, which counts the forwards of the budget."""
    if (folder / STATE).exists():
        say(f"going on with what is in {folder}")
    bars = progress()
    bar = bars.add_task("tune", total=None, note="")

    def look(race: Race, choice: Choice, budget: float) -> None:
        gone = len(race.left) + len(race.refused)
        note = f"forwards, {len(race.racing)} settings race, {gone} left: {choice.label}"
        bars.update(bar, completed=round(race.spent), total=round(budget) or None, note=note)

    try:
        with bars:
            return Search(question, folder, look).run()
    except KeyboardInterrupt:
        interrupted(folder)


def _write(folder: Path, recipe: Recipe, report: Report) -> list[Path]:
    path = folder / "recipe.json"
    with options.naming(path):
        path.write_text(recipe.to_json(), encoding="utf-8")
        return [path, *write(folder, report, 0)]


def _print(found: Found, recipe: Recipe, files: list[Path], as_json: bool) -> None:
    if as_json:
        print(recipe.to_json())
        return
    console = Terminal()
    table = race_table(found)
    console.print_table(printed(table))
    console.print(table.legend, markup=False, style="dim")
    figures = recipe.measured
    low, high = figures["above_floor_interval"]
    if not recipe.confirmed["passed"]:
        console.print(_UNSHOWN, markup=False)
    console.print(
        f"recipe: {found.confirmed.chosen.label}: {figures['accuracy']:.1%} right at "
        f"{figures['cost']:.2f} {recipe.cost} on {figures['problems']} unseen problems; "
        f"stepwise {figures['stepwise_accuracy']:.1%} at {figures['stepwise_cost']:.2f}; the floor "
        f"{recipe.floor} {_WORDS[figures['floor']]} ({low:+.1%} to {high:+.1%} above it)",
        markup=False,
    )
    written(files)
