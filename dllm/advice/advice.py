"""Where a decoding step is bound, and what cache, verifier and batch change of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dllm.advice.figures import Figures
from dllm.advice.seconds import PassSeconds, PassWork, seconds_of, total_seconds, work_of
from dllm.advice.workload import (
    CACHES,
    Network,
    Workload,
    autoregressive,
    passes_of,
    step_of,
    with_canvases,
)
from dllm.state.plan import PassShape

CANVASES = (2, 4, 8)  # of a row, in one pass of a verifier
BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class CacheAdvice:
    """What an answer costs with a cache."""

    cache: str
    flops: int  # of an answer of all rows
    seconds: float  # the same
    step_seconds: float  # of its usual pass
    # Tokens a step from which it takes no longer than an autoregressive model of the same size;
    # None: not even with a block in one step.
    break_even: int | None


@dataclass(frozen=True)
class VerifierAdvice:
    """What a pass of a verifier costs."""

    num_canvases: int  # of a row
    passes: float  # its seconds over those of a step: so many steps must it make certain


@dataclass(frozen=True)
class BatchAdvice:
    """What a step costs with more rows."""

    num_rows: int
    step_seconds: float
    row_seconds: float  # step_seconds / num_rows
    bound: str


@dataclass(frozen=True)
class Advice:
    """All that is said of a network on a machine."""

    workload: Workload
    figures: Figures
    cache: str  # the one with the least seconds, of which the following speak
    step: PassShape
    work: PassWork
    parts: PassSeconds
    caches: tuple[CacheAdvice, ...]  # the fastest first
    not_counted: tuple[str, ...]  # caches that serve the model, whose passes depend on tokens
    verifiers: tuple[VerifierAdvice, ...]
    batches: tuple[BatchAdvice, ...]
    autoregressive_seconds: float  # of an answer of all rows, a token a pass

    @property
    def bound(self) -> str:
        """The part of a step that takes longest."""
        return self.parts.bound

    @property
    def balance(self) -> float:
        """FLOPs for a byte at which this machine's memory and products take equally long."""
        return self.figures.flops_per_second / self.figures.bytes_per_second


def advise(network: Network, workload: Workload, figures: Figures, caches: Sequence[str]) -> Advice:
    """Returns what counted passes and a machine's figures say, for caches that serve the model."""
    known = [name for name in CACHES if name in caches]
    if not known:
        raise ValueError(
            f"caches={list(caches)!r}: passes are counted of {', '.join(CACHES)} alone, which do "
            "not serve this model"
        )
    other = total_seconds(network, autoregressive(workload), figures)
    rated = [_of_cache(network, workload, figures, name, other) for name in known]
    rated.sort(key=lambda one: one.seconds)
    step = step_of(rated[0].cache, workload)
    parts = seconds_of(network, step, figures)
    return Advice(
        workload=workload,
        figures=figures,
        cache=rated[0].cache,
        step=step,
        work=work_of(network, step),
        parts=parts,
        caches=tuple(rated),
        not_counted=tuple(name for name in caches if name not in CACHES),
        verifiers=tuple(
            VerifierAdvice(
                count,
                seconds_of(network, with_canvases(step, count), figures).total / parts.total,
            )
            for count in CANVASES
        ),
        batches=tuple(_of_batch(network, step, figures, rows) for rows in BATCHES),
        autoregressive_seconds=other,
    )


def _of_cache(
    network: Network, workload: Workload, figures: Figures, cache: str, other: float
) -> CacheAdvice:
    passes = passes_of(cache, workload)
    return CacheAdvice(
        cache=cache,
        flops=sum(one.count * network.cost.flops(one.shape) for one in passes),
        seconds=total_seconds(network, passes, figures),
        step_seconds=seconds_of(network, step_of(cache, workload), figures).total,
        break_even=_break_even(network, workload, figures, cache, other),
    )


def _break_even(
    network: Network, workload: Workload, figures: Figures, cache: str, other: float
) -> int | None:
    """Returns the fewest tokens a step with which an answer takes no longer than `other`."""
    for tokens in range(1, workload.block_length + 1):
        quicker = replace(workload, tokens_per_step=tokens)
        if total_seconds(network, passes_of(cache, quicker), figures) <= other:
            return tokens
    return None


def _of_batch(network: Network, step: PassShape, figures: Figures, rows: int) -> BatchAdvice:
    parts = seconds_of(network, replace(step, num_rows=rows), figures)
    return BatchAdvice(rows, parts.total, parts.total / rows, parts.bound)
