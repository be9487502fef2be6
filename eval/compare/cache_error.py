"""Each pass of a cached decoding beside a full pass over the same canvas: errors and effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from dllm.cache.passes import every_column
from dllm.decoding.passes import Forward, PassRecord, in_window
from dllm.decoding.shadow import run_shadowed, with_shadows
from dllm.generate import Stream
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.prompts import Prompts
from dllm.settings import Settings, resolve
from dllm.state.candidates import Candidates
from dllm.state.noise import CounterNoise


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


@dataclass
class ErrorRecorder:
    """An observer that runs the exact pass beside each pass and keeps the differences.

    The exact pass is a full one without a store, on the canvas as it is: it costs time, but
    writes nothing and draws no noise, so that the observed run goes as it would alone.
    """

    parts: list[Entries] = field(default_factory=list)

    def __call__(self, seen: PassRecord) -> None:
        """Compares one pass."""
        masked, width = seen.window.masked, seen.window.columns.shape[1]
        cached, exact = seen.logits[:, :width], exact_logits(seen)
        largest, mean = logit_error(cached, exact, masked)
        # At temperature 0 no noise is drawn, whatever it is.
        noise = CounterNoise(torch.zeros_like(seen.canvas.step))
        sampling = replace(seen.sampling, temperature=0.0)
        ours, theirs = (
            sampling.propose(logits, noise, seen.window.columns, seen.canvas.step)
            for logits in (cached, exact)
        )
        mean_age, max_age = ages(seen)
        entries = Entries(
            row=torch.arange(len(masked), device=masked.device),
            step=seen.canvas.step.clone(),
            num_masks=masked.sum(1).double(),
            max_error=largest,
            mean_error=mean,
            divergence=divergence(cached, exact, masked),
            same_tokens=(masked & (ours.token == theirs.token)).sum(1).double(),
            same_first=same_first(ours, theirs, masked),
            rank_correlation=rank_correlation(ours.confidence, theirs.confidence, masked),
            mean_age=mean_age,
            max_age=max_age,
        )
        self.parts.append(entries)

    @property
    def entries(self) -> Entries:
        """All passes so far in their order, on the CPU, without rows that only waited."""
        found = join(self.parts)
        compared = found.num_masks > 0
        return Entries(**{name: value[compared] for name, value in vars(found).items()})


def join(parts: Sequence[Entries]) -> Entries:
    """Returns the entries of all sets, on the CPU."""
    names = [field.name for field in fields(Entries)]
    if not parts:
        return Entries(**{name: torch.empty(0, dtype=torch.float64) for name in names})
    return Entries(**{name: torch.cat([getattr(p, name) for p in parts]).cpu() for name in names})


def observe(
    model: DenoisingModel, prompts: Prompts, settings: Settings | None = None, **given: Any
) -> tuple[GenerationOutput, Entries]:
    """Returns what `generate` returns, and how each pass compared with an exact one.

    Arguments are those of `generate`. The metrics count the observed passes alone, but their
    times hold the exact ones too.
    """
    recorder = ErrorRecorder()
    settings = resolve(model.defaults, settings, given)
    running = Stream(model, prompts, settings, observer=recorder)
    for _ in running:
        pass
    return running.output, recorder.entries


def exact_logits(seen: PassRecord) -> Tensor:
    """Returns the window's logits (B, W, V) by a full pass over the same canvas."""
    plan = every_column(seen.canvas, seen.model.spec, store=False, width=seen.progress.length)
    forward = Forward(seen.model, None, Meter(seen.canvas.tokens.device))
    columns, width = seen.plan.logit_columns, seen.window.columns.shape[1]
    if columns is not None:
        rows = plan.logit_rows.gather(1, columns)
        plan = replace(plan, logit_rows=rows, logit_columns=columns)
    if seen.num_shadows:  # alike in shape, or else rounding would differ
        plan = with_shadows(plan, seen.canvas)
        logits = run_shadowed(plan, seen.num_shadows, seen.canvas, forward)
    else:
        logits = forward(seen.canvas.tokens, plan)
    return in_window(logits[:, :width], plan, width)


def ages(seen: PassRecord) -> tuple[Tensor, Tensor]:
    """Returns the mean and the largest age of the keys that each row attended to, (B,) float64.

    Age is counted in passes, 0 for keys that this pass wrote. Shadows are left out.
    """
    layout, plan = seen.canvas.layout, seen.plan
    if seen.store is None:
        nothing = torch.zeros(layout.num_rows, device=plan.positions.device, dtype=torch.float64)
        return nothing, nothing
    num_keys = min(plan.num_keys, layout.num_columns)
    first = slice(0, layout.num_rows * seen.num_variants, seen.num_variants)
    age = seen.store.age(num_keys)[first].to(plan.positions.device).double()
    visible = torch.ones_like(age, dtype=torch.bool)
    if plan.attention_mask is not None:
        visible = plan.attention_mask.any(1)[:, :num_keys]
    age = torch.where(visible, age, 0)
    return age.sum(1) / visible.sum(1).clamp(min=1), age.amax(1)


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
