"""Hierarchical decoding (dInfer): one token in each run of masks, so that runs split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Scheduler
from dllm.schedulers.view import View


@dataclass(frozen=True)
class Hierarchical(Scheduler):
    """Commits each run's most confident column if >= `low_threshold`, and all > `threshold`.

    A run is a stretch of masks without a token in between. Tokens committed together are then
    neighbours only if both are sure, and a block takes about log2 of its length in steps.
    """

    threshold: float | None = 0.9  # None: one token a run at most
    low_threshold: float = 0.5

    source: ClassVar[str] = "inclusionAI/dInfer decoding/parallel_strategy.py (Hierarchy Decoding)"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "dinfer": {"threshold": 0.92, "low_threshold": 0.62},
        "fast": {"threshold": 0.8, "low_threshold": 0.5},
    }

    def select(self, candidates: Candidates, view: View) -> Decision:
        confidence = candidates.confidence
        commit = self._best_of_runs(confidence, view.masked) & (confidence >= self.low_threshold)
        if self.threshold is not None:
            commit = commit | (confidence > self.threshold)
        return Decision(commit)

    @staticmethod
    def _best_of_runs(confidence: Tensor, masked: Tensor) -> Tensor:
        """Returns the most confident column of each run of masks, the first of equal ones."""
        begins = masked & ~torch.cat([torch.zeros_like(masked[:, :1]), masked[:, :-1]], 1)
        run = begins.int().cumsum(1).long()  # 0: before any run
        place = rank(confidence, masked)
        worst = place.new_full((place.shape[0], place.shape[1] + 1), place.shape[1])
        ranked = place.masked_fill(~masked, place.shape[1])
        best = worst.scatter_reduce(1, run, ranked, "amin")
        return masked & (place == best.gather(1, run))
