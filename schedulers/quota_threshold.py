"""Confidence threshold with a quota: at most (Fast-dLLM for Dream) or at least so many (SDAR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Count, Probability
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, rank
from dllm.schedulers.fixed_quota import share_of_block

_USUAL = 32  # steps of the authors' code


@dataclass(frozen=True)
class QuotaThreshold(Scheduler):
    """Commits, of the most confident columns that the quota allows, those >= `threshold`.

    The quota of a step is masks/steps plus what earlier steps turned down; after the last step it
    is all that is left, so the block may take more than its share of `steps`. With as many steps
    as masks it is one token a step, whatever the threshold.

    With `quota="least"` it is the fewest that a step commits instead: all columns >= `threshold`,
    and the most confident ones up to the step's share of a full block where they are fewer.
    """

    threshold: Probability = 0.9  # probability, compared with >=
    # In total over all blocks; None: 32, or 32 // blocks for each, and one token a step at least.
    steps: Count | None = None
    quota: Literal["most", "least"] = "most"  # least: SDAR's low_confidence_dynamic

    source = (
        "NVlabs/Fast-dLLM dream/model/generation_utils.py:_sample; least: arXiv 2510.06303, "
        "JetAstra/SDAR generate.py (low_confidence_dynamic)"
    )
    confidence = "tempered"

    def check(self, num_blocks: int, block_length: int) -> None:
        self._check_steps(self.steps, num_blocks)

    def select(self, candidates: Candidates, view: View) -> Decision:
        place = rank(candidates.confidence, view.masked)
        passes = candidates.confidence >= self.threshold
        if self.quota == "least":
            return Decision(passes | (place < self._least(view)[:, None]))
        steps = ((self.steps or _USUAL) // view.num_blocks).clamp(min=1)
        later = (steps - 1 - view.block_step).clamp(min=0) * (view.block_masks // steps)
        quota = view.left.sum(1) - later
        allowed = place < quota[:, None]
        return Decision(allowed & (passes | (place == 0)))

    def _least(self, view: View) -> Tensor:
        """Returns how many columns a step commits at least, (B,) int64."""
        if self.steps is None:
            return torch.ones_like(view.block_step)
        steps = self.steps // view.num_blocks
        return share_of_block(steps, view.block_step, view.layout.block_length)
