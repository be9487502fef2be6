"""A search as an ablation's report: the front on unseen problems, and what was raced."""

from __future__ import annotations

from dllm.eval.ablation.ablation import Ablation, Row, TaskChoice, method_of
from dllm.eval.ablation.bench import Trial
from dllm.eval.ablation.lines import Line
from dllm.eval.report.ablation import Report
from dllm.eval.report.tables import Table, accuracy
from dllm.eval.run.summary import summarise
from dllm.recipes.recipe import Recipe
from dllm.tuning.arm import Arm
from dllm.tuning.race import Race
from dllm.tuning.space import Choice
from dllm.tuning.tune import Found, Question
from dllm.tuning.verdict import recipe_of

_LEGEND = (
    "On unseen problems; an asterisk marks the recipe. The cost and forwards are those of a "
    "problem, forwards of rows with the variants and drafts of a row counted."
)


def race_table(found: Found) -> Table:
    """Returns the front on unseen problems, the cheapest first."""
    chosen, cost = found.confirmed.chosen, found.race.rules.cost
    rows = [
        (
            choice.label + (" *" if choice == chosen else ""),
            accuracy(summarise(list(arm.results))),
            f"{arm.cost:.4g}",
            f"{arm.work:.2f}",
        )
        for choice, arm in sorted(found.unseen.items(), key=lambda pair: pair[1].cost)
    ]
    heads = ("run", "accuracy (95 %)", cost, "row forwards")
    return Table("Front", heads, rows, _LEGEND)


def report_of(question: Question, found: Found) -> Report:
    """Returns the report: a line for each setting of the front, and notes on how it was found."""
    task = TaskChoice(question.task.name)
    lines = []
    for number, (choice, arm) in enumerate(found.unseen.items(), start=1):
        given = {**question.fixed, **choice.given}
        row = Row(choice.label, method_of(given), question.model.name, task, given)
        trial = Trial.of(number, row, question.task, found.parts.unseen)
        lines.append(Line(trial, list(arm.results)))
    recipe = recipe_of(question, found)
    about = f"{recipe.floor} at the lowest {recipe.cost}"
    rows = tuple(line.candidate.row for line in lines)
    notes = (_chosen(recipe), *_trials(found), *_race(found.race), *recipe.not_tried)
    return Report(Ablation(f"tune {question.task.name}", about, rows, notes), lines)


def _chosen(recipe: Recipe) -> str:
    figures = recipe.measured
    low, high = figures["above_floor_interval"]
    return (
        f"recipe: {recipe.settings['scheduler']}, block {recipe.settings['block_length']}, "
        f"{low:+.1%} to {high:+.1%} above the floor on {figures['problems']} unseen problems"
    )


def _trials(found: Found) -> list[str]:
    """Returns a note for each setting that was tried on fresh problems."""
    on = f"on {found.confirmed.problems} fresh problems, less 1.64 standard errors"
    return [
        f"confirmed: {trial.arm.choice.label}: {trial.excess.mean:+.1%} above the floor {on}: "
        f"{trial.bound:+.1%}: {'passed' if trial.passed else 'not shown to be above it'}"
        for trial in found.confirmed.trials
    ]


def _race(race: Race) -> list[str]:
    """Returns a note for each setting that was raced: what it came to, or why it left."""
    arms = sorted(race.arms.values(), key=lambda arm: (arm.cost, arm.choice.label))
    return [f"{_came_to(race, arm.choice, arm)}" for arm in arms]


def _came_to(race: Race, choice: Choice, arm: Arm) -> str:
    end = race.left.get(choice, "in the race to the end")
    figures = f"{arm.accuracy:.1%} at {arm.cost:.4g} {race.rules.cost} on {arm.count} problems"
    return f"raced: {choice.label}: {figures}; {end}"
