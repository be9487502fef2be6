"""Runs caches beside exact passes and beside the run without a cache, and sums up both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dllm import cache as caches
from dllm import schedulers
from dllm.compatible import check
from dllm.eval.compare import Prompted
from dllm.eval.compare.cache_error import Entries, join, observe
from dllm.eval.run.describe import short
from dllm.generate import generate
from dllm.models.model import DenoisingModel
from dllm.options import Count
from dllm.output import GenerationOutput
from dllm.settings import Settings


@dataclass(frozen=True)
class CacheErrorRun(Prompted):
    """Prompts, and how they are decoded whatever the cache."""

    batch_size: Count = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise ValueError("there are no prompts to decode")
        if self.settings.generator is not None or self.settings.noise is not None:
            raise ValueError(
                "runs that are compared must draw the same noise: give seed, not generator or noise"
            )
        if self.settings.constraint is not None:
            raise ValueError(
                "constraint: keys and decisions are compared with the model's own logits, which a "
                "constraint changes: leave constraint out"
            )

    @property
    def num_batches(self) -> int:
        return -(-len(self.prompts) // self.batch_size)

    def check(self, cache: Any) -> None:
        """Raises ValueError when the model or the scheduler does not go with a cache."""
        check(self.model, replace(self.settings, cache=cache))

    def allowed(self) -> dict[str, str | None]:
        """Returns every cache by name, with the reason why it is refused, None if it is not."""
        reasons: dict[str, str | None] = {}
        for name in caches.registry.names():
            reasons[name] = None
            try:
                self.check(name)
            except ValueError as error:
                reasons[name] = str(error)
        return reasons

    def reference(self) -> Iterator[GenerationOutput]:
        """Yields each batch decoded without a cache."""
        for _, prompts, settings in self.batches():
            yield generate(self.model, prompts, replace(settings, cache="none"))

    def observed(self, cache: Any, references: Sequence[GenerationOutput]) -> Iterator[Observed]:
        """Yields each batch decoded with a cache, beside exact passes and the reference."""
        named = self.settings.eos_token_id
        ends = self.model.spec.eos_token_ids if named is None else named
        ends = (ends,) if isinstance(ends, int) else tuple(ends)
        for (_, prompts, settings), reference in zip(self.batches(), references, strict=True):
            output, entries = observe(self.model, prompts, replace(settings, cache=cache))
            yield Observed(output, entries, reference, ends)


def cache_error(
    model: DenoisingModel,
    prompts: Sequence[Any],
    settings: Settings,
    cache: Any = "dual",
    batch_size: int = 32,
) -> CacheError:
    """Returns the changes and savings of a cache on a list of prompts."""
    run = CacheErrorRun(model, prompts, settings, batch_size)
    parts = list(run.observed(cache, list(run.reference())))
    return summarise(replace(settings, cache=cache), parts)


@dataclass(frozen=True)
class Observed:
    """A batch of prompts decoded with a cache and without one."""

    output: GenerationOutput
    entries: Entries
    reference: GenerationOutput
    ends: tuple[int, ...]  # tokens that end an answer


@dataclass(frozen=True)
class CacheError:
    """The changes and savings of one cache; means are over passes of a row, sums over prompts.

    What is not defined is None: an order of one column, FLOPs of a wrapped module.
    """

    cache: str
    scheduler: str
    prompts: int
    passes: int  # compared with an exact one, counted for each row
    max_error: float  # of a logit
    mean_error: float  # of a logit, over all compared columns
    divergence: float  # nats a column, KL(exact || cached)
    same_tokens: float  # part of the compared columns
    same_first: float  # part of the passes with the same most confident column
    rank_correlation: float | None  # Spearman's rho of confidence
    same_output: float  # part of the tokens, equal to those without a cache
    same_rows: float  # part of the prompts with the same answer
    forwards: float  # a prompt
    tokens_fed: float  # a prompt
    flops: float | None  # a prompt
    flops_saved: float | None  # part of those without a cache
    mean_age: float  # passes since the attended keys were written
    max_age: float
    store_bytes: int  # of the largest batch
    correct: float | None = None  # part of the prompts, where the answers are known


def summarise(settings: Settings, parts: Sequence[Observed]) -> CacheError:
    """Returns the sum of all batches of one cache."""
    found = join([part.entries for part in parts])
    if not len(found):
        raise ValueError("no pass was made: the prompts leave nothing to commit")
    masks = found.num_masks
    ours = [answer for part in parts for answer in _answers(part.output, part.ends)]
    theirs = [answer for part in parts for answer in _answers(part.reference, part.ends)]
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(sum(a == b for a, b in zip(*pair, strict=False)) for pair in pairs)
    outputs = [part.output for part in parts]
    flops, full = _flops(outputs), _flops([part.reference for part in parts])
    correlation = float(found.rank_correlation.nanmean())
    scheduler = schedulers.registry.create(settings.scheduler).summary()
    return CacheError(
        cache=short(caches.registry.create(settings.cache).summary(), caches.registry),
        scheduler=short(scheduler, schedulers.registry),
        prompts=len(pairs),
        passes=len(found),
        max_error=float(found.max_error.max()),
        mean_error=_weighted(found.mean_error, masks),
        divergence=_weighted(found.divergence, masks),
        same_tokens=float(found.same_tokens.sum() / masks.sum()),
        same_first=float(found.same_first.mean()),
        rank_correlation=None if math.isnan(correlation) else correlation,
        same_output=same / sum(max(map(len, pair)) for pair in pairs),
        same_rows=sum(one == other for one, other in pairs) / len(pairs),
        forwards=sum(row.forwards for out in outputs for row in out.metrics.rows) / len(pairs),
        tokens_fed=sum(out.metrics.tokens_fed for out in outputs) / len(pairs),
        flops=None if flops is None else flops / len(pairs),
        flops_saved=None if flops is None or not full else 1 - flops / full,
        mean_age=float(found.mean_age.mean()),
        max_age=float(found.max_age.max()),
        store_bytes=max(out.metrics.store_bytes for out in outputs),
    )


def _weighted(value: Tensor, weight: Tensor) -> float:
    return float((value * weight).sum() / weight.sum())


def _answers(out: GenerationOutput, ends: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yields each row's generated tokens up to the first end token."""
    for sequence, row in zip(out.sequences, out.metrics.rows, strict=True):
        tokens = sequence[row.prompt_tokens :]
        stops = (number + 1 for number, token in enumerate(tokens) if token in ends)
        yield tokens[: next(stops, len(tokens))]


def _flops(outputs: Sequence[GenerationOutput]) -> int | None:
    counted = [out.metrics.flops for out in outputs if out.metrics.flops is not None]
    return sum(counted) if len(counted) == len(outputs) else None
