"""What a verifier brings into a generation: passes, a cache, drafts, and rows of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dllm.cache import Cache
from dllm.decoding.passes import Passes, PlainPasses, Step
from dllm.decoding.speculation import verifiers
from dllm.decoding.speculation.linear import LinearPasses, causal_cache
from dllm.decoding.speculation.passes import VerifiedPasses
from dllm.decoding.speculation.verifiers import StepVerifier, Verifier
from dllm.decoding.speculation.verifiers.linear import Linear
from dllm.state.progress import AtEnd
from dllm.state.variants import Drafts, no_drafts


class Speculation(Protocol):
    """The parts of a generation that drafts and verifies."""

    @property
    def verifier(self) -> Verifier:
        """The method and its options."""
        ...

    def cache(self, cache: Cache) -> Cache:
        """Returns what plans the passes, where a cache was asked for."""
        ...

    def start(self, step: Step, narrows: bool, at_eos: AtEnd) -> tuple[Passes, int]:
        """Returns what runs them, and the rows of the store for each row of the batch.

        `narrows`: logits of masked columns alone serve the scheduler.
        """
        ...

    def drafts(self, tokens: Tensor) -> Drafts:
        """Returns rows of canvas tokens (B, C) that have none yet."""
        ...


@dataclass(frozen=True)
class _OfSteps:
    """Of a verifier that runs the next steps of a scheduler."""

    verifier: StepVerifier

    def cache(self, cache: Cache) -> Cache:
        return cache

    def start(self, step: Step, narrows: bool, at_eos: AtEnd) -> tuple[Passes, int]:
        variants = self.verifier.num_variants if self.verifier.execution == "batch" else 1
        plain = PlainPasses(step, narrows and variants == 1)
        return VerifiedPasses(plain, self.verifier, at_eos, step.cache.refreshes), variants

    def drafts(self, tokens: Tensor) -> Drafts:
        return no_drafts(tokens, self.verifier.num_variants, self.verifier.adaptive)


@dataclass(frozen=True)
class _OfText:
    """Of the one that drafts the text itself."""

    verifier: Linear

    def cache(self, cache: Cache) -> Cache:
        return causal_cache(cache)

    def start(self, step: Step, narrows: bool, at_eos: AtEnd) -> tuple[Passes, int]:
        return LinearPasses(step, self.verifier, stops=at_eos != "ignore"), 1

    def drafts(self, tokens: Tensor) -> Drafts:
        most = self.verifier.most_steps
        return no_drafts(tokens, most, adaptive=False, begin=self.verifier.first_window)


def speculation_of(given: str | Mapping[str, Any] | Verifier | None) -> Speculation | None:
    """Returns what a verifier, which was checked, brings; None where none is given."""
    if given is None:
        return None
    verifier = verifiers.registry.create(given)
    if isinstance(verifier, Linear):
        return _OfText(verifier)
    assert isinstance(verifier, StepVerifier)
    return _OfSteps(verifier)
