"""Certainty density (d2Cache): confidence counts for more near what is already decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Needs, Scheduler
from dllm.schedulers.view import View


@dataclass(frozen=True)
class CertaintyDensity(Scheduler):
    """Commits columns whose confidence times the share of decoded text nearby is >= `threshold`.

    The share is weighted by a Gaussian of width `sigma` columns. The prompt counts as decoded, and
    what follows the last slot as the last slot is. Without a threshold one column goes a step.
    """

    threshold: float | None = None  # of the product; None: the best column alone
    sigma: float = 10.0  # columns

    source: ClassVar[str] = "arXiv 2509.23094; Kamichanw/d2Cache src/generation/vanilla.py"
    statistic: ClassVar[str] = "confidence, distance to decoded columns"

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma={self.sigma} must be positive")

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(whole_row=True)

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        score = candidates.confidence * self._density(view).to(candidates.confidence.dtype)
        commit = (rank(score, masked) == 0) & masked
        if self.threshold is not None:
            commit = commit | ((score >= self.threshold) & masked)
        return Decision(commit)

    def _density(self, view: View) -> Tensor:
        """Returns the weighted share of decoded columns around each, (B, W) float32."""
        width = view.columns.shape[1]
        slots = (view.columns < view.length[:, None]) & (view.offset >= 0)
        decoded = slots & (view.tokens != view.layout.mask_token_id)
        places = torch.arange(width, device=view.columns.device)
        nearby = decoded.float() @ self._weight(places[:, None] - places)
        # Weights summed up to each distance: both ends reach as far as the row has slots.
        summed = self._weight(torch.arange(2 * width, device=places.device)).cumsum(0)
        count = (view.length - view.prompt_length)[:, None]
        before = view.offset.clamp(0, width - 1)
        after = (count - 1 - view.offset).clamp(0, width - 1)
        left = summed[before + count] - summed[before]
        right = summed[after + count] - summed[after]
        ended = (decoded & (view.offset == count - 1)).any(1, keepdim=True)
        return (nearby + left + torch.where(ended, right, 0)) / (2 * summed[-1] - 1)

    def _weight(self, distance: Tensor) -> Tensor:
        return torch.exp(-distance.float().square() / (2 * self.sigma**2))
