"""All that a run cost and gave, over all of its results, whichever start made them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dllm.eval.run.record import RunRecord
from dllm.eval.run.results import Result
from dllm.eval.run.summary import record as record_of
from dllm.eval.run.summary import summarise

_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high", "correct", "scored", "scores", "pass_at")


@dataclass(frozen=True)
class Totals:
    """Sums and rates; None where lines of before a figure was kept do not have it."""

    answers: int
    prompt_tokens: int
    valid_tokens: int  # before the first end token
    raw_tokens: int  # all that the model committed
    forwards: int  # in which a row had something to commit, summed over rows
    row_forwards: int  # the same, with every variant of a row counted
    rows_fed: float | None  # over all passes, places of finished rows included
    tokens_fed: float  # columns
    tokens_per_forward: float  # valid ones
    raw_tokens_per_forward: float
    seconds: float  # of decoding, summed over the processes
    prefill_seconds: float | None  # the part of it that went to each row's first pass
    tokens_per_second: float  # valid ones; sums divided
    tokens_per_second_mean: float  # mean over answers
    tokens_per_second_decode: float | None  # the two without prefill
    tokens_per_second_decode_mean: float | None
    latency_p50: float | None  # seconds of decoding from an answer's first pass to its last
    latency_p95: float | None
    peak_memory: int | None  # bytes of device memory; None on a CPU
    early_stops: int  # answers that ended with an end token
    truncated: int  # answers without one: all slots were filled
    not_extracted: int | None  # answers in which the judge found none
    ended: str | None  # when the last result came, UTC


def totals_of(results: Sequence[Result]) -> Totals:
    """Returns the totals of the results of one run, of which there is at least one."""
    if not results:
        raise ValueError("there are no results to sum up")
    valid, raw = sum(r.valid_tokens for r in results), sum(r.raw_tokens for r in results)
    forwards, seconds = sum(r.forwards for r in results), math.fsum(r.seconds for r in results)
    prefill = _sum(r.prefill_seconds for r in results)
    known = [r for r in results if r.prefill_seconds is not None]
    decode = [(r.valid_tokens, r.seconds - (r.prefill_seconds or 0.0)) for r in known]
    whole = prefill is not None
    latency = [r.latency for r in results if r.latency is not None]
    memory = [r.peak_memory for r in results if r.peak_memory is not None]
    extracted = [r.extracted for r in results if r.extracted is not None]
    finished = [r.finished for r in results if r.finished is not None]
    return Totals(
        answers=len(results),
        prompt_tokens=sum(r.prompt_tokens for r in results),
        valid_tokens=valid,
        raw_tokens=raw,
        forwards=forwards,
        row_forwards=sum(r.row_forwards for r in results),
        rows_fed=_sum(r.rows_fed for r in results),
        tokens_fed=math.fsum(r.tokens_fed for r in results),
        tokens_per_forward=_ratio(valid, forwards),
        raw_tokens_per_forward=_ratio(raw, forwards),
        seconds=seconds,
        prefill_seconds=prefill,
        tokens_per_second=_ratio(valid, seconds),
        tokens_per_second_mean=_mean([(r.valid_tokens, r.seconds) for r in results]),
        tokens_per_second_decode=_ratio(valid, math.fsum(s for _, s in decode)) if whole else None,
        tokens_per_second_decode_mean=_mean(decode) if whole else None,
        latency_p50=_percentile(latency, 0.5),
        latency_p95=_percentile(latency, 0.95),
        peak_memory=max(memory, default=None),
        early_stops=sum(r.finish_reason == "eos" for r in results),
        truncated=sum(r.finish_reason == "length" for r in results),
        not_extracted=extracted.count(False) if extracted else None,
        ended=max(finished, default=None),
    )


def full_record(name: str, record: RunRecord, results: Sequence[Result]) -> dict[str, Any]:
    """Returns all that should be published with a run's figures, as JSON-ready values."""
    summarised = record_of(summarise(results))
    made = [result.start for result in results]
    starts = [{**asdict(start), "answers": made.count(start.id)} for start in record.starts]
    return {
        "run": name,
        "settings": dict(record.settings),
        "task": dict(record.task),
        "accuracy": {name: summarised[name] for name in _ACCURACY},
        "totals": asdict(totals_of(results)),
        "starts": starts,
    }


def _sum(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return math.fsum(known) if len(known) == len(listed) else None


def _ratio(count: float, total: float) -> float:
    return count / total if total else 0.0


def _mean(pairs: Sequence[tuple[int, float]]) -> float:
    return math.fsum(_ratio(tokens, seconds) for tokens, seconds in pairs) / len(pairs)


def _percentile(values: Sequence[float], part: float) -> float | None:
    """Returns the smallest value that at least this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(part * len(ordered)) - 1, 0)] if ordered else None
