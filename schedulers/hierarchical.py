"""Hierarchical decoding (dInfer): one token in each run of masks, so that runs split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.options import Probability
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, rank


@dataclass(frozen=True)
class Hierarchical(Scheduler):
    """Commits each run's most confident column if >= `low_threshold`, and all > `threshold`.

    A run is a stretch of masks without a token in between. Tokens committed together are then
    neighbours only if both are sure, and a block takes about log2 of its length in steps.

    With `remask_threshold`, tokens of the block that the model no longer gives that probability
    count as masks too. The chosen ones are written anew and the others masked again; at least one
    more than there are of them is chosen, so every step leaves fewer masks.
    """

    threshold: Probability | None = (
        0.92  # probability, compared with >; None: one token a run at most
    )
    low_threshold: Probability = 0.62  # compared with >=
    remask_threshold: Probability | None = None  # compared with <; None: nothing is revised

    source = "inclusionAI/dInfer decoding/parallel_strategy.py (Hierarchy Decoding)"
    statistic = "confidence, runs of masks"
    presets = {
        "fast": {"threshold": 0.8, "low_threshold": 0.5},
        "medium": {"threshold": 0.85, "low_threshold": 0.75},
        "sure": {"threshold": 0.9, "low_threshold": 0.7},
    }

    @property
    def can_revise(self) -> bool:
        return self.remask_threshold is not None

    def revision_limit(self, block_length: int) -> int:
        return block_length  # a step leaves fewer masks than it found

    def select(self, candidates: Candidates, view: View) -> Decision:
        if self.remask_threshold is None:
            return Decision(self._chosen(candidates, view.masked))
        # The authors' code asks for the best token's probability, whatever token stands there.
        support = candidates.log_prob(view.tokens).exp()
        doubted = view.committed & view.block & view.known & (support < self.remask_threshold)
        is_open = view.masked | doubted
        chosen = self._chosen(candidates, is_open)
        least = torch.maximum(chosen.sum(1), doubted.sum(1) + 1)
        chosen = is_open & (rank(candidates.confidence + 2 * chosen, is_open) < least[:, None])
        return Decision(chosen & view.masked, edit=chosen & doubted, remask=doubted & ~chosen)

    def _chosen(self, candidates: Candidates, is_open: Tensor) -> Tensor:
        confidence = candidates.confidence
        chosen = _best_of_runs(confidence, is_open) & (confidence >= self.low_threshold)
        if self.threshold is not None:
            chosen = chosen | (is_open & (confidence > self.threshold))
        return chosen


def _best_of_runs(confidence: Tensor, is_open: Tensor) -> Tensor:
    """Returns the most confident column of each run of open ones, the first of equal ones."""
    width = is_open.shape[1]
    begins = is_open & ~F.pad(is_open[:, :-1], (1, 0))
    run = begins.int().cumsum(1).long()  # 0: before any run
    place = rank(confidence, is_open).masked_fill(~is_open, width)
    best = place.new_full((place.shape[0], width + 1), width).scatter_reduce(1, run, place, "amin")
    return is_open & (place == best.gather(1, run))
