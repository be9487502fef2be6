"""Runs caches beside exact passes over the same canvas, and beside the run without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dllm import cache as caches
from dllm.cache.base import every_column
from dllm.compatible import check
from dllm.decoding.passes import Forward, PassRecord, in_window
from dllm.decoding.shadow import run_shadowed, with_shadows
from dllm.eval.compare import batches
from dllm.eval.compare.cache_error import (
    CacheError,
    Entries,
    Observed,
    divergence,
    join,
    logit_error,
    rank_correlation,
    same_first,
    summarise,
)
from dllm.generate import Stream, generate
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.prompts import Prompts
from dllm.settings import Settings, resolve
from dllm.state.noise import CounterNoise


@dataclass(frozen=True)
class CacheErrorRun:
    """Prompts, and how they are decoded whatever the cache."""

    model: DenoisingModel
    prompts: Sequence[Any]
    settings: Settings
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if not self.prompts:
            raise ValueError("there are no prompts to decode")
        if self.settings.generator is not None or self.settings.noise is not None:
            raise ValueError(
                "runs that are compared must draw the same noise: give seed, not generator or noise"
            )

    @property
    def num_batches(self) -> int:
        """The number of batches in which a cache is observed."""
        return -(-len(self.prompts) // self.batch_size)

    def check(self, cache: Any) -> None:
        """Raises ValueError when the model or the scheduler does not go with a cache."""
        check(self.model, replace(self.settings, cache=cache))

    def allowed(self) -> dict[str, str | None]:
        """Returns every cache by name, with the reason why it is refused, None if it is not."""
        reasons: dict[str, str | None] = {}
        for name in caches.registry.names():
            try:
                self.check(name)
            except ValueError as error:
                reasons[name] = str(error)
            else:
                reasons[name] = None
        return reasons

    def reference(self) -> Iterator[GenerationOutput]:
        """Yields each batch decoded without a cache."""
        for _, prompts, settings in batches(self.prompts, self.settings, self.batch_size):
            yield generate(self.model, prompts, replace(settings, cache="none"))

    def observed(self, cache: Any, references: Sequence[GenerationOutput]) -> Iterator[Observed]:
        """Yields each batch decoded with a cache, beside exact passes and the reference."""
        named = self.settings.eos_token_id
        ends = self.model.spec.eos_token_ids if named is None else named
        ends = (ends,) if isinstance(ends, int) else tuple(ends)
        parts = batches(self.prompts, self.settings, self.batch_size)
        for (_, prompts, settings), reference in zip(parts, references, strict=True):
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
