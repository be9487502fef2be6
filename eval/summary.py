"""What the results of one run come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dllm import cache as caches
from dllm import schedulers
from dllm.eval.runner import Result
from dllm.registry import Registry

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Summary:
    """Accuracy beside its cost; every ratio is of sums, not a mean of ratios."""

    scheduler: str
    cache: str
    problems: int
    correct: int
    accuracy: float  # part of the problems, 0 to 1
    accuracy_low: float  # 95 % Wilson interval
    accuracy_high: float
    forwards: float  # a problem
    tokens_fed: float  # a problem
    tokens_per_forward: float  # valid tokens
    raw_tokens_per_forward: float  # all committed tokens
    tokens_per_second: float  # valid tokens


def summarise(results: Sequence[Result]) -> Summary:
    """Returns the summary of the results of one run, of which there is at least one."""
    if not results:
        raise ValueError("there are no results to summarise")
    count, correct = len(results), sum(result.correct for result in results)
    forwards = sum(result.forwards for result in results)
    seconds = sum(result.seconds for result in results)
    valid = sum(result.valid_tokens for result in results)
    low, high = wilson(correct, count)
    settings = results[0].settings
    return Summary(
        scheduler=short(settings["scheduler"], schedulers.registry),
        cache=short(settings["cache"], caches.registry),
        problems=count,
        correct=correct,
        accuracy=correct / count,
        accuracy_low=low,
        accuracy_high=high,
        forwards=forwards / count,
        tokens_fed=sum(result.tokens_fed for result in results) / count,
        tokens_per_forward=valid / forwards if forwards else 0.0,
        raw_tokens_per_forward=(
            sum(result.raw_tokens for result in results) / forwards if forwards else 0.0
        ),
        tokens_per_second=valid / seconds if seconds else 0.0,
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion."""
    z2 = _NORMAL_95**2
    centre = (successes + z2 / 2) / (trials + z2)
    spread = math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    half = _NORMAL_95 * spread / (trials + z2)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def short(part: Mapping[str, Any], registry: Registry[Any]) -> str:
    """Returns the short form of a scheduler or cache, options at their default left out."""
    usual = {field.name: field.default for field in fields(registry.get(part["name"]))}
    first = next(iter(usual), None)  # its name may be left out
    options = [
        str(part[key]) if key == first else f"{key}={part[key]}"
        for key in usual
        if part[key] != usual[key]
    ]
    return ":".join([str(part["name"]), *([",".join(options)] if options else [])])
