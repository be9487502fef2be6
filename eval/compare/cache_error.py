"""Cached passes beside exact ones in figures: errors of logits, what they change, what is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dllm import cache as caches
from dllm import schedulers
from dllm.eval.run.describe import short
from dllm.output import GenerationOutput
from dllm.settings import Settings
from dllm.state.candidates import Candidates

Answer = tuple[int, ...]


@dataclass(frozen=True)
class Entries:
    """N passes of one row each, as they were beside the exact pass; float64 but for `row`, `step`.

    A row has an entry for each pass in which it had masks to commit.
    """

    row: Tensor  # (N,) int64 of the batch
    step: Tensor  # (N,) int64 passes of the row before this one
    num_masks: Tensor  # (N,) columns that were compared
    max_error: Tensor  # (N,) of a logit
    mean_error: Tensor  # (N,) of all logits of the compared columns
    divergence: Tensor  # (N,) nats, KL(exact || cached), mean of the compared columns
    same_tokens: Tensor  # (N,) compared columns for which the same token is proposed
    same_first: Tensor  # (N,) 1: the most confident column is the same
    rank_correlation: Tensor  # (N,) Spearman's rho of confidence; NaN without an order
    mean_age: Tensor  # (N,) passes since the keys that the row attended to were written
    max_age: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.row)

    def records(self) -> list[dict[str, float]]:
        """Returns the entries as a mapping each."""
        columns = [value.tolist() for value in vars(self).values()]
        return [dict(zip(vars(self), line, strict=True)) for line in zip(*columns, strict=True)]


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


def logit_error(logits: Tensor, exact: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest and the mean absolute difference over each row's chosen columns, (B,).

    Logits are (B, W, V), `chosen` (B, W) bool. Two equal infinities do not differ; a row without
    chosen columns has no error.
    """
    difference = torch.where(logits == exact, 0, (logits - exact).abs())
    difference = torch.where(chosen[..., None], difference, 0).double()
    largest = difference.amax((1, 2))
    return largest, difference.mean(2).sum(1) / chosen.sum(1).clamp(min=1)


def divergence(logits: Tensor, exact: Tensor, chosen: Tensor) -> Tensor:
    """Returns the mean KL(exact || cached) of the chosen columns in nats, (B,) float64."""
    cached, true = logits.double().log_softmax(-1), exact.double().log_softmax(-1)
    terms = torch.where(true.isneginf(), 0, true.exp() * (true - cached))
    each = torch.where(chosen, terms.sum(-1), 0)
    return each.sum(1).clamp(min=0) / chosen.sum(1).clamp(min=1)


def same_first(cached: Candidates, exact: Candidates, chosen: Tensor) -> Tensor:
    """Returns whether the same chosen column is the most confident one, (B,) float64.

    Ties go to the lower column, as in schedulers; NaN where a row has no chosen column.
    """
    first = [c.confidence.masked_fill(~chosen, -torch.inf).argmax(1) for c in (cached, exact)]
    return (first[0] == first[1]).double().masked_fill(~chosen.any(1), torch.nan)


def rank_correlation(cached: Tensor, exact: Tensor, chosen: Tensor) -> Tensor:
    """Returns Spearman's rho of two scores (B, W) over each row's chosen columns, (B,) float64.

    Equal scores share their mean rank. NaN where there is no order to compare: fewer than two
    columns, or all scores of one side equal.
    """
    count = chosen.sum(1, keepdim=True)
    centred = []
    for score in (cached, exact):
        rank = _mean_rank(score, chosen)
        mean = torch.where(chosen, rank, 0).sum(1, keepdim=True) / count.clamp(min=1)
        centred.append(torch.where(chosen, rank - mean, 0))
    one, other = centred
    spread = (one.square().sum(1) * other.square().sum(1)).sqrt()
    return torch.where(spread > 0, (one * other).sum(1) / spread, torch.nan)


def _mean_rank(score: Tensor, chosen: Tensor) -> Tensor:
    """Returns ranks (B, W) float64 among the chosen columns, the mean one for equal scores."""
    score = score.double().masked_fill(~chosen, torch.inf)  # the others come last
    ordered = score.sort(1).values
    below = torch.searchsorted(ordered, score)
    above = torch.searchsorted(ordered, score, right=True)
    return (below + above - 1).double() / 2


def join(parts: Sequence[Entries]) -> Entries:
    """Returns the entries of all sets, on the CPU."""
    names = [field.name for field in fields(Entries)]
    if not parts:
        return Entries(**{name: torch.empty(0, dtype=torch.float64) for name in names})
    return Entries(**{name: torch.cat([getattr(p, name) for p in parts]).cpu() for name in names})


def summarise(settings: Settings, parts: Sequence[Observed]) -> CacheError:
    """Returns the sum of all batches of one cache."""
    found = join([part.entries for part in parts])
    if not len(found):
        raise ValueError("no pass was made: the prompts leave nothing to commit")
    masks = found.num_masks
    pairs = [pair for part in parts for pair in _answers(part)]
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


def _answers(part: Observed) -> list[tuple[Answer, Answer]]:
    """Returns each row's tokens with and without the cache, up to the first end token."""
    return [
        (_answer(part.output, row, part.ends), _answer(part.reference, row, part.ends))
        for row in range(len(part.output.sequences))
    ]


def _answer(out: GenerationOutput, row: int, ends: Sequence[int]) -> Answer:
    tokens = out.sequences[row][out.metrics.rows[row].prompt_tokens :]
    stops = (number + 1 for number, token in enumerate(tokens) if token in ends)
    return tokens[: next(stops, len(tokens))]


def _flops(outputs: Sequence[GenerationOutput]) -> int | None:
    counted = [out.metrics.flops for out in outputs if out.metrics.flops is not None]
    return sum(counted) if len(counted) == len(outputs) else None
