"""Runs caches beside exact passes, and beside the run without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dllm import cache as caches
from dllm.compatible import check
from dllm.eval.compare.cache_error import CacheError, Observed, summarise
from dllm.eval.compare.error_recorder import observe
from dllm.generate import generate
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.settings import Settings


@dataclass(frozen=True)
class Audit:
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
        """How often a cache is observed."""
        return -(-len(self.prompts) // self.batch_size)

    def check(self, cache: Any) -> None:
        """Raises ValueError when the model or the scheduler does not go with a cache."""
        check(self.model, replace(self.settings, cache=cache))

    def allowed(self) -> dict[str, str | None]:
        """Returns every cache by name, with the reason why it is refused, None if it is not."""
        found: dict[str, str | None] = {}
        for name in caches.registry.names():
            try:
                self.check(name)
            except ValueError as error:
                found[name] = str(error)
            else:
                found[name] = None
        return found

    def reference(self) -> Iterator[GenerationOutput]:
        """Yields each batch decoded without a cache."""
        for start in range(0, len(self.prompts), self.batch_size):
            prompts, settings = self._batch(start)
            yield generate(self.model, prompts, replace(settings, cache="none"))

    def observed(self, cache: Any, references: Sequence[GenerationOutput]) -> Iterator[Observed]:
        """Yields each batch decoded with a cache, beside exact passes and the reference."""
        given = self.settings.eos_token_id
        ends = self.model.spec.eos_token_ids if given is None else given
        ends = (ends,) if isinstance(ends, int) else tuple(ends)
        for start, reference in zip(
            range(0, len(self.prompts), self.batch_size), references, strict=True
        ):
            prompts, settings = self._batch(start)
            output, entries = observe(self.model, prompts, replace(settings, cache=cache))
            yield Observed(output, entries, reference, ends)

    def _batch(self, start: int) -> tuple[list[Any], Settings]:
        """Returns prompts and settings of a batch; a prompt's seed does not depend on it."""
        prompts = list(self.prompts[start : start + self.batch_size])
        seed = self.settings.seed
        if isinstance(seed, list):
            seeds = seed[start : start + self.batch_size]
        else:
            seeds = [(seed or 0) + start + row for row in range(len(prompts))]
        return prompts, replace(self.settings, seed=seeds)


def audit(
    model: DenoisingModel,
    prompts: Sequence[Any],
    settings: Settings,
    cache: Any = "dual",
    batch_size: int = 32,
) -> CacheError:
    """Returns what a cache changes and saves on a list of prompts."""
    asked = Audit(model, prompts, settings, batch_size)
    parts = list(asked.observed(cache, list(asked.reference())))
    return summarise(replace(settings, cache=cache), parts)
