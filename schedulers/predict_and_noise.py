"""Predict and noise (E2D2): everything is predicted, and what is least sure is masked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dllm.options import Count, Probability, Range
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, rank


@dataclass(frozen=True)
class PredictAndNoise(Scheduler):
    """Leaves floor(s * block) columns masked at time s, the least sure, and one fewer than before.

    Times fall linearly from 1 to `least_time` over the steps of a block; the count is of a full
    block, so that one that the prompt fills in part takes one column a step at first. Columns whose
    probability is `threshold` or more are committed whatever the time.
    """

    steps: Count | None = None  # in total over all blocks; None: one for each column of a block
    threshold: Probability | None = None  # probability, compared with >=; None: never
    order: Literal["confidence", "margin"] = "confidence"
    least_time: Annotated[float, Range(0, 1, above=True, below=True)] = 1e-5

    source = "arXiv 2510.22852; kuleshov-group/e2d2 src/denoiser/diffusion.py (predict_and_noise)"
    without_mask = True

    @property
    def never_waits(self) -> bool:
        return True

    def check(self, num_blocks: int, block_length: int) -> None:
        self._check_steps(self.steps, num_blocks)

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.certainty(self.order)

    def select(self, candidates: Candidates, view: View) -> Decision:
        steps = self._steps(view)
        after = view.block_step.clamp(max=steps - 1) + 1
        kept = (self._time(after, steps) * view.layout.block_length).long()
        left = view.left.sum(1)
        count = left - torch.minimum(kept, left - 1)
        commit = rank(self.score(candidates), view.masked) < count[:, None]
        if self.threshold is not None:
            commit = commit | (candidates.confidence >= self.threshold)
        return Decision(commit)

    def _steps(self, view: View) -> Tensor:
        """Returns the steps of a block of each row, (B,) int64."""
        if self.steps is None:
            return torch.full_like(view.block_step, view.layout.block_length)
        return self.steps // view.num_blocks

    def _time(self, after: Tensor, steps: Tensor) -> Tensor:
        """Returns the time after so many steps of `steps`, float64."""
        return 1 - after * ((1 - self.least_time) / steps.double())
