"""Confidence threshold (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.options import Probability
from dllm.schedulers.base import Candidates, Decision, Scheduler, View


@dataclass(frozen=True)
class Threshold(Scheduler):
    """Commits every column whose confidence is at least `threshold`, the best one if none is.

    A threshold above 1 commits one token a step; 0 the whole block at once.
    """

    threshold: Probability = 0.9  # probability, compared with >=

    source = "arXiv 2505.22618; NVlabs/Fast-dLLM llada/generate.py:get_transfer_index"

    def select(self, candidates: Candidates, view: View) -> Decision:
        return Decision(candidates.confidence >= self.threshold)
