"""A fixed number of tokens a step (LLaDA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Scheduler
from dllm.schedulers.view import View


@dataclass(frozen=True)
class FixedQuota(Scheduler):
    """Spreads the masks of each block evenly over its share of `steps`, larger quotas first.

    `order` says which columns go first: those with the highest confidence or margin, the lowest
    entropy, or random ones.
    """

    steps: int | None = None  # in total over all blocks; None: one token a step
    order: Literal["confidence", "margin", "entropy", "random"] = "confidence"

    source: ClassVar[str] = "arXiv 2502.09992; ML-GSAI/LLaDA generate.py (low_confidence, random)"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")

    def check(self, num_blocks: int, block_length: int) -> None:
        if self.steps is not None and self.steps % num_blocks:
            raise ValueError(
                f"steps={self.steps} is the total and must be a multiple of the {num_blocks} "
                f"blocks; steps={max(self.steps // num_blocks, 1) * num_blocks} fits"
            )

    def score(self, candidates: Candidates) -> Tensor:
        if self.order == "entropy":
            return -candidates.entropy
        return candidates.margin if self.order == "margin" else candidates.confidence

    def select(self, candidates: Candidates, view: View) -> Decision:
        score = view.uniform() if self.order == "random" else self.score(candidates)
        return Decision(rank(score, view.masked) < self._quota(view)[:, None])

    def _quota(self, view: View) -> Tensor:
        """Returns how many tokens each row commits now, (B,) int64."""
        masks = view.masked.sum(-1)
        if self.steps is None:
            return masks.clamp(max=1)
        left = (self.steps // view.num_blocks - view.block_step).clamp(min=1)
        return (masks + left - 1) // left
