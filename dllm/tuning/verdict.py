"""What unseen problems say of a recipe, and what no problem was asked about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dllm import cache, schedulers
from dllm.eval.run.summary import NORMAL_95, summarise
from dllm.tuning.arm import Arm
from dllm.tuning.floor import Floor
from dllm.tuning.race import Race
from dllm.tuning.space import STEPWISE


def measured(recipe: Arm, stepwise: Arm, floor: Floor) -> dict[str, Any]:
    """Returns the figures of a recipe on unseen problems, as JSON has them."""
    summary = summarise(list(recipe.results.values()))
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
        "forwards": summary.forwards,
        "row_forwards": summary.row_forwards,
        "tokens_per_forward": summary.tokens_per_forward,
    }


def not_tried(race: Race) -> Iterator[str]:
    """Yields what the search says nothing about."""
    space = race.space
    tried = {*space.schedulers, STEPWISE}
    yield "schedulers: " + ", ".join(n for n in schedulers.registry.names() if n not in tried)
    yield "caches: " + ", ".join(n for n in cache.registry.names() if n not in space.caches)
    if race.rules.cost != "seconds":
        yield f"batches: only {space.batch_size} rows, which changes no {race.rules.cost}"
    yield "options of schedulers, caches and verifiers but one a scheduler: at their defaults"
    for choice in race.waiting:
        yield f"for want of budget: {choice.label}"
    for choice, why in race.refused.items():
        yield f"refused: {choice.label}: {why}"
