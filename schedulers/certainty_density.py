"""Certainty density (d2Cache): confidence counts for more near what is already decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm.density import decoded_share
from dllm.schedulers.base import Decision, Needs, Scheduler
from dllm.schedulers.view import View
from dllm.state.candidates import Candidates, best


@dataclass(frozen=True)
class CertaintyDensity(Scheduler):
    """Commits columns whose confidence times the share of decoded text nearby is >= `threshold`.

    The share is weighted by a Gaussian of width `sigma` columns. All that precedes the slots counts
    as decoded, and what follows them as the last slot is. Without a threshold one column goes a
    step, near the text that is there.
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
        score = candidates.confidence * self._density(view, candidates.confidence.dtype)
        commit = best(score, masked)
        if self.threshold is not None:
            commit = commit | ((score >= self.threshold) & masked)
        return Decision(commit)

    def _density(self, view: View, dtype: torch.dtype) -> Tensor:
        """Returns the weighted share of decoded columns around each, (B, W) in [0, 1]."""
        slots = (view.columns < view.length[:, None]) & (view.offset >= 0)
        decoded = slots & (view.tokens != view.layout.mask_token_id)
        num_slots = view.length - view.prompt_length
        return decoded_share(decoded, view.offset, num_slots, self.sigma, dtype)
