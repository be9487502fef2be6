"""Sums up the results of one run: accuracy beside its cost, and all that should be published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dllm.eval.run.describe import short_names
from dllm.eval.run.record import RunRecord
from dllm.eval.run.results import Result

NORMAL_95 = 1.959963984540054  # standard deviations on each side that hold 95 %
_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high", "correct", "scored", "scores", "pass_at")


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
    # Of answers that were held to a constraint; None without any.
    forced: float | None = None  # tokens of an answer that it left no choice of
    nats_lost: float | None = None  # of an answer
    constraint_ms: float | None = None  # of a step of the batch; None too: nothing tells
    padding: float | None = None  # the part of what was fed that no row needed; None: not known


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
    judged = [result for result in results if result.correct is not None]
    count, correct, scored = len(results), sum(bool(r.correct) for r in judged), len(judged)
    valid, raw = sum(r.valid_tokens for r in results), sum(r.raw_tokens for r in results)
    forwards, row_forwards = sum(r.forwards for r in results), sum(r.row_forwards for r in results)
    # Samples of one problem are alike: the problems are the trials, however often each was tried.
    trials = len({result.problem_id for result in judged})
    low, high = wilson(correct * trials / scored, trials) if scored else (0.0, 1.0)
    names = short_names(results[0].settings)
    flops = [result.flops for result in results if result.flops is not None]
    return Summary(
        scheduler=names["scheduler"],
        cache=names["cache"],
        problems=len({result.problem_id for result in results}),
        correct=correct,
        accuracy=ratio(correct, scored),
        accuracy_low=low,
        accuracy_high=high,
        forwards=forwards / count,
        row_forwards=row_forwards / count,
        tokens_fed=sum(result.tokens_fed for result in results) / count,
        tokens_per_forward=ratio(valid, forwards),
        tokens_per_row_forward=ratio(valid, row_forwards),
        raw_tokens_per_forward=ratio(raw, forwards),
        tokens_per_second=ratio(valid, sum(r.seconds for r in results)),
        flops=sum(flops) / count if len(flops) == count else None,
        scored=scored,
        scores=_further(judged),
        verifier=names.get("verifier", ""),
        pass_at=passes(results),
        padding=padding_of(results),
        **tolls_of(results),
    )


def tolls_of(results: Sequence[Result]) -> dict[str, float | None]:
    """Returns what constraints cost: tokens and nats of an answer, milliseconds of a step."""
    forced = [float(r.forced) for r in results if r.forced is not None]
    nats = [r.nats_lost for r in results if r.nats_lost is not None]
    timed = [(r.constraint_seconds, r.steps) for r in results if r.constraint_seconds is not None]
    seconds, steps = (math.fsum(pair[part] or 0.0 for pair in timed) for part in (0, 1))
    return {
        "forced": math.fsum(forced) / len(forced) if forced else None,
        "nats_lost": math.fsum(nats) / len(nats) if nats else None,
        "constraint_ms": 1000 * ratio(seconds, steps) if timed else None,
    }


def padding_of(results: Sequence[Result]) -> float | None:
    """Returns the part of the fed columns that no row needed; None where not all results say."""
    needed, fed = _sum(r.tokens_needed for r in results), math.fsum(r.tokens_fed for r in results)
    return None if needed is None or not fed else max(1 - needed / fed, 0.0)


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a proportion."""
    z2 = NORMAL_95**2
    centre = (successes + z2 / 2) / (trials + z2)
    spread = math.sqrt(successes * (trials - successes) / trials + z2 / 4)
    half, share = NORMAL_95 * spread / (trials + z2), successes / trials
    # The bounds of 0 and 1 are themselves, which rounding would miss on the wrong side.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def _further(judged: Sequence[Result]) -> dict[str, float]:
    """Returns the mean of each score in the details, over the results that have it."""
    found: dict[str, list[float]] = {}
    for result in judged:
        for name, value in result.details.items():
            if isinstance(value, bool | float):
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def pass_at(samples: int, correct: int, k: int) -> float:
    """Returns the unbiased estimate of pass@k from `correct` of `samples` (2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k), as a product that does not overflow.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {correct} correct ones among {samples} samples is not defined: it takes "
            "0 <= correct <= samples and 1 <= k <= samples"
        )
    missed = 1.0  # 0 as soon as fewer than k are wrong: k is then one of the numbers
    for number in range(samples - correct + 1, samples + 1):
        missed *= 1 - k / number
    return 1 - missed


def passes(results: Iterable[Result]) -> dict[int, float]:
    """Returns the mean of pass@1 to pass@n over the problems; empty without several samples.

    n is the most samples that every problem has; those that were not scored do not count.
    """
    judged: dict[str, list[bool]] = {}
    for result in results:
        if result.correct is not None:
            judged.setdefault(result.problem_id, []).append(result.correct)
    fewest = min(map(len, judged.values()), default=0)
    if max(map(len, judged.values()), default=0) < 2:
        return {}
    return {
        k: sum(pass_at(len(s), sum(s), k) for s in judged.values()) / len(judged)
        for k in range(1, fewest + 1)
    }


def totals_of(results: Sequence[Result]) -> dict[str, Any]:
    """Returns sums and rates over the results of one run, of which there is at least one.

    None where lines of before a figure was kept do not have it.
    """
    if not results:
        raise ValueError("there are no results to sum up")
    valid, raw = sum(r.valid_tokens for r in results), sum(r.raw_tokens for r in results)
    forwards, seconds = sum(r.forwards for r in results), math.fsum(r.seconds for r in results)
    prefill = _sum(r.prefill_seconds for r in results)
    decode = [(r.valid_tokens, r.seconds - (r.prefill_seconds or 0.0)) for r in results]
    whole = prefill is not None
    latency = [r.latency for r in results if r.latency is not None]
    extracted = [r.extracted for r in results if r.extracted is not None]
    return {
        "answers": len(results),
        "prompt_tokens": sum(r.prompt_tokens for r in results),
        "valid_tokens": valid,  # before the first end token
        "raw_tokens": raw,  # all that the model committed
        "forwards": forwards,  # in which a row had something to commit, summed over rows
        "row_forwards": sum(r.row_forwards for r in results),  # with every variant of a row
        "rows_fed": _sum(r.rows_fed for r in results),  # places of finished rows included
        "tokens_fed": math.fsum(r.tokens_fed for r in results),  # columns
        "padding": padding_of(results),  # the part of them that no row needed
        "tokens_per_forward": ratio(valid, forwards),  # valid ones
        "raw_tokens_per_forward": ratio(raw, forwards),
        **tolls_of(results),  # the first two of an answer, the last of a step
        "seconds": seconds,  # of decoding, summed over the processes
        "prefill_seconds": prefill,  # the part of it that went to each row's first pass
        "tokens_per_second": ratio(valid, seconds),  # valid ones; sums divided
        "tokens_per_second_mean": _mean([(r.valid_tokens, r.seconds) for r in results]),
        # The two without prefill.
        "tokens_per_second_decode": ratio(valid, math.fsum(s for _, s in decode))
        if whole
        else None,
        "tokens_per_second_decode_mean": _mean(decode) if whole else None,
        # Seconds of decoding from an answer's first pass to its last.
        "latency_p50": _percentile(latency, 0.5),
        "latency_p95": _percentile(latency, 0.95),
        # Bytes of device memory; None on a CPU.
        "peak_memory": max(
            (r.peak_memory for r in results if r.peak_memory is not None), default=None
        ),
        "early_stops": sum(r.finish_reason == "eos" for r in results),  # ended with an end token
        "truncated": sum(r.finish_reason == "length" for r in results),  # all slots were filled
        "not_extracted": extracted.count(False) if extracted else None,  # the judge found none
        # When the last result came, UTC.
        "ended": max((r.finished for r in results if r.finished is not None), default=None),
    }


def full_record(name: str, run: RunRecord, results: Sequence[Result]) -> dict[str, Any]:
    """Returns all that should be published with a run's figures, as JSON-ready values."""
    summarised = record(summarise(results))
    made = [result.start for result in results]
    starts = [{**asdict(start), "answers": made.count(start.id)} for start in run.starts]
    return {
        "run": name,
        "settings": dict(run.settings),
        "task": dict(run.task),
        "accuracy": {name: summarised[name] for name in _ACCURACY},
        "totals": totals_of(results),
        "starts": starts,
    }


def _sum(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return math.fsum(known) if len(known) == len(listed) else None


def ratio(count: float, total: float) -> float:
    """Returns a count for each of a total, 0 of nothing."""
    return count / total if total else 0.0


def _mean(pairs: Sequence[tuple[int, float]]) -> float:
    return math.fsum(ratio(tokens, seconds) for tokens, seconds in pairs) / len(pairs)


def _percentile(values: Sequence[float], part: float) -> float | None:
    """Returns the smallest value that at least this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(part * len(ordered)) - 1, 0)] if ordered else None
