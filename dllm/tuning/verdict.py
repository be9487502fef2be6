"""A search as a recipe: what unseen problems say of it, and what no problem was asked about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dllm
from dllm import cache, schedulers
from dllm.eval.run.summary import NORMAL_95, summarise
from dllm.models.digest import weights_digest
from dllm.recipes.recipe import FORMAT, Recipe
from dllm.tuning.arm import Arm
from dllm.tuning.confirm import ERROR_RATE, Confirmed
from dllm.tuning.floor import Floor
from dllm.tuning.problems import digest_of
from dllm.tuning.race import Race
from dllm.tuning.tune import Found, Question


def recipe_of(asked: Question, found: Found) -> Recipe:
    """Returns what a search names, with all that speaks for it."""
    race, parts, chosen = found.race, found.parts, found.race.arms[found.confirmed.chosen]
    batch = {"batch_size": chosen.choice.batch_size} if asked.cost == "seconds" else {}
    slots = {"max_new_tokens": asked.settings.max_new_tokens}
    pair = found.unseen[chosen.choice], found.unseen[race.space.stepwise]
    return Recipe(
        format=FORMAT,
        version=dllm.__version__,
        model=asked.model.name,
        weights=weights_digest(asked.model),
        task=asked.task.name,
        settings={**slots, **asked.fixed, **chosen.choice.given, **batch},
        cost=asked.cost,
        floor=str(asked.floor),
        measured={**measured(*pair, asked.floor), "problems_digest": digest_of(parts.unseen)},
        tuned={
            "problems": chosen.count,
            "problems_digest": digest_of(parts.race),
            "source": parts.source,
            "seed": asked.seed,
            "budget": found.budget,
            "spent": found.spent,
            "settings_tried": len(race.arms),
            "accuracy": chosen.accuracy,
            "cost": chosen.cost,
        },
        confirmed={**_named(found.confirmed), "problems_digest": digest_of(parts.confirm)},
        not_tried=tuple(not_tried(race)),
    )


def _named(confirmed: Confirmed) -> dict[str, Any]:
    """Returns how a setting came to be named on fresh problems, as JSON has it."""
    trials = [
        {
            "setting": trial.arm.choice.label,
            "accuracy": trial.arm.accuracy,
            "above_floor": trial.excess.mean,
            "at_least": trial.bound,
            "passed": trial.passed,
        }
        for trial in confirmed.trials
    ]
    above = confirmed.trial is not None
    return {
        "passed": above,
        "problems": confirmed.problems,
        "error_rate": ERROR_RATE,
        "trials": trials,
    }


def measured(recipe: Arm, stepwise: Arm, floor: Floor) -> dict[str, Any]:
    """Returns the figures of a recipe on unseen problems, as JSON has them."""
    summary = summarise(list(recipe.results))
    excess = recipe.excess(stepwise, floor)
    low, high = (excess.mean + side * NORMAL_95 * excess.error for side in (-1, 1))
    verdict = "holds" if low >= 0 else "broken" if high < 0 else "open"
    return {
        "problems": summary.problems,
        "accuracy": summary.accuracy,
        "accuracy_interval": [summary.accuracy_low, summary.accuracy_high],
        "stepwise_accuracy": stepwise.accuracy,
        "above_floor": excess.mean,
        "above_floor_interval": [low, high],
        "floor": verdict,  # "open": the interval has the floor in it
        "cost": recipe.cost,
        "stepwise_cost": stepwise.cost,
        "forwards": summary.row_forwards,
        "passes": summary.forwards,
        "tokens_per_forward": summary.tokens_per_row_forward,
    }


def not_tried(race: Race) -> Iterator[str]:
    """Yields what the search says nothing about."""
    space = race.space
    tried = {choice.scheduler for choice in race.arms}
    yield "schedulers: " + ", ".join(n for n in schedulers.registry.names() if n not in tried)
    yield "caches: " + ", ".join(n for n in cache.registry.names() if n not in space.caches)
    if len(space.verifiers) == 1:
        yield f"verifiers, which lower no {race.rules.cost}"
    if race.rules.cost != "seconds":
        yield f"batches: only {space.batch_size} rows, which changes no {race.rules.cost}"
    yield "options of caches and verifiers; of schedulers token ids, files and switches"
    for choice in race.waiting:
        yield f"for want of budget: {choice.label}"
    for choice, why in race.refused.items():
        yield f"refused: {choice.label}: {why}"
