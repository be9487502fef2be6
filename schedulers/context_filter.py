"""A trained filter reads each prediction with its neighbours and says how surely it is right."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dllm.learn2pd.context import ContextNetwork, Reading, read_context_filter
from dllm.options import CountOrNone, Probability
from dllm.schedulers.base import Candidates, Decision, ModelSpec, Needs, Scheduler, View, best


@dataclass(frozen=True)
class ContextFilter(Scheduler):
    """Commits columns that are right with a probability >= `threshold` near the first mask.

    Near are the next `reach` columns; further away it must be `far_threshold`: those wait at no
    cost while what they depend on is open. A filter estimates the probability from tokens,
    confidences and entropies of the neighbourhood; the surest column goes in any case.
    """

    weights: str | None = None  # a file of `dllm train-context-filter`; None: the confidence itself
    threshold: Probability = 0.97
    far_threshold: Probability = 0.99
    reach: CountOrNone = 8  # columns

    constant_needs = Needs(whole_row=True)
    never_waits = True
    source = "ours: a filter as in arXiv 2509.25188 (Learn2PD), of what stands around a column"
    statistic = "confidence, margin, entropy and tokens nearby, through a trained filter"
    presets = {"tiny": {"weights": "tiny"}}  # the filter of the embedded model

    def __post_init__(self) -> None:
        if self.weights is not None:
            _ = self._network  # a missing or damaged file is an error now, not in the loop

    def check_model(self, spec: ModelSpec) -> None:
        if self.weights is not None:
            self._network.check_model(spec)

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        right = self.probability(candidates, view)
        first = masked.int().argmax(1, keepdim=True)
        column = torch.arange(masked.shape[1], device=masked.device)
        near = column - first < self.reach
        passed = torch.where(near, right >= self.threshold, right >= self.far_threshold)
        return Decision((passed | best(right, masked)) & masked)

    def probability(self, candidates: Candidates, view: View) -> Tensor:
        """Returns how probably each column's proposal is right, (B, W)."""
        if self.weights is None:
            return candidates.confidence
        network = self._network.on(view.columns.device)
        return network(read(candidates, view)).sigmoid()

    @cached_property
    def _network(self) -> ContextNetwork:
        assert self.weights is not None
        return read_context_filter(self.weights)


def read(candidates: Candidates, view: View) -> Reading:
    """Returns what a filter reads of a window; columns that no pass computed are doubtful."""
    inside, known = (view.offset >= 0) & (view.columns < view.length[:, None]), view.known
    waiting = inside & ~view.fixed & (view.tokens == view.layout.mask_token_id)
    confidence = candidates.confidence.float().where(known, 0)
    return Reading(
        open=waiting,
        inside=inside,
        shown=torch.where(waiting & known, candidates.token, view.tokens).where(inside, 0),
        confidence=confidence,
        second=(confidence - candidates.margin.float()).where(known, 0).clamp(min=0),
        entropy=candidates.entropy.float().where(known, math.log(candidates.logits.shape[-1])),
    )
