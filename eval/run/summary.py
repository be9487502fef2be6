"""What the results of one run come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from dllm import cache as caches
from dllm import schedulers
from dllm.decoding.speculation import verifiers
from dllm.eval.run.results import Result
from dllm.eval.run.samples import passes, problem_id
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
    row_forwards: float  # a problem; the same, with every variant of the row counted
    tokens_fed: float  # a problem
    tokens_per_forward: float  # valid tokens
    tokens_per_row_forward: float  # the same, with every variant of the row counted
    raw_tokens_per_forward: float  # all committed tokens
    tokens_per_second: float  # valid tokens
    flops: float | None = None  # a problem; None: not known of all of them
    scored: int = 0  # answers that were judged; without any, accuracy says nothing
    scores: Mapping[str, float] = field(default_factory=dict)  # further ones, parts of the scored
    verifier: str = ""
    pass_at: Mapping[int, float] = field(default_factory=dict)  # k to pass@k, of several samples


def record(summary: Summary) -> dict[str, Any]:
    """Returns a summary as JSON-ready values; the accuracy of what was not scored is None."""
    values = asdict(summary)
    if not summary.scored:
        values |= {"accuracy": None, "accuracy_low": None, "accuracy_high": None, "correct": None}
    return values


def summarise(results: Sequence[Result]) -> Summary:
    """Returns the summary of the results of one run, of which there is at least one."""
    if not results:
        raise ValueError("there are no results to summarise")
    scores = [result.correct for result in results if result.correct is not None]
    count, correct, scored = len(results), sum(scores), len(scores)
    forwards = sum(result.forwards for result in results)
    row_forwards = sum(result.row_forwards for result in results)
    seconds = sum(result.seconds for result in results)
    valid = sum(result.valid_tokens for result in results)
    problems = len({problem_id(result.id) for result in results})
    low, high = _interval(results) if scored else (0.0, 1.0)
    settings = results[0].settings
    flops = [result.flops for result in results if result.flops is not None]
    return Summary(
        scheduler=short(settings["scheduler"], schedulers.registry),
        cache=short(settings["cache"], caches.registry),
        problems=problems,
        correct=correct,
        accuracy=correct / scored if scored else 0.0,
        accuracy_low=low,
        accuracy_high=high,
        forwards=forwards / count,
        row_forwards=row_forwards / count,
        tokens_fed=sum(result.tokens_fed for result in results) / count,
        tokens_per_forward=valid / forwards if forwards else 0.0,
        tokens_per_row_forward=valid / row_forwards if row_forwards else 0.0,
        raw_tokens_per_forward=(
            sum(result.raw_tokens for result in results) / forwards if forwards else 0.0
        ),
        tokens_per_second=valid / seconds if seconds else 0.0,
        flops=sum(flops) / count if len(flops) == count else None,
        scored=scored,
        scores=_further(results),
        verifier=short(settings["verifier"], verifiers.registry) if "verifier" in settings else "",
        pass_at=passes(results),
    )


def _interval(results: Sequence[Result]) -> tuple[float, float]:
    """Returns the interval of the accuracy.

    Samples of one problem are alike: the problems are the trials, whatever number each was tried.
    """
    judged = [result for result in results if result.correct is not None]
    correct = sum(bool(result.correct) for result in judged)
    problems = len({problem_id(result.id) for result in judged})
    return wilson(correct * problems / len(judged), problems)


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion."""
    z2 = _NORMAL_95**2
    centre = (successes + z2 / 2) / (trials + z2)
    spread = math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    half, share = _NORMAL_95 * spread / (trials + z2), successes / trials
    # The bounds of 0 and 1 are themselves, which rounding would miss on the wrong side.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def _further(results: Sequence[Result]) -> dict[str, float]:
    """Returns the mean of each score in the details, over the results whose judge keeps it."""
    kept: dict[str, list[bool]] = {}
    for result in results:
        for name, value in result.details.items():
            if isinstance(value, bool) and result.correct is not None:
                kept.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in kept.items()}


def short(part: Mapping[str, Any], registry: Registry[Any]) -> str:
    """Returns the short form of a scheduler or cache, options at their default left out.

    One that was given as an instance from elsewhere has no known defaults: all are named.
    """
    known = part["name"] in registry.names()
    usual = {f.name: _default(f) for f in fields(registry.get(part["name"]))} if known else {}
    first = next(iter(usual), None)  # its name may be left out
    options = []
    for key in usual or [key for key in part if key != "name"]:
        if not known or part[key] != usual[key]:
            inner = isinstance(part[key], Mapping) and "name" in part[key]
            value = short(part[key], registry) if inner else part[key]
            options.append(str(value) if key == first else f"{key}={value}")
    return ":".join([str(part["name"]), *([",".join(options)] if options else [])])


def _default(field: Field[Any]) -> Any:
    """Returns an option's default as a summary holds it: a part that is an option is a mapping."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return value.summary() if isinstance(value, schedulers.Scheduler) else value
