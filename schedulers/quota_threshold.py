"""Confidence threshold under a quota whose unused part is kept (Fast-dLLM for Dream)."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.options import Count, Probability
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, rank

_USUAL = 32  # steps of the authors' code


@dataclass(frozen=True)
class QuotaThreshold(Scheduler):
    """Commits, of the most confident columns that the quota allows, those >= `threshold`.

    The quota of a step is masks/steps plus what earlier steps turned down; after the last step it
    is all that is left, so the block may take more than its share of `steps`. With as many steps
    as masks it is one token a step, whatever the threshold.
    """

    threshold: Probability = 0.9  # probability, compared with >=
    steps: Count | None = None  # in total over all blocks; None: 32, or 32 // blocks for each

    source = "NVlabs/Fast-dLLM dream/model/generation_utils.py:_sample"
    confidence = "tempered"

    def check(self, num_blocks: int, block_length: int) -> None:
        self._check_steps(self.steps, num_blocks)

    def select(self, candidates: Candidates, view: View) -> Decision:
        steps = ((self.steps or _USUAL) // view.num_blocks).clamp(min=1)
        later = (steps - 1 - view.block_step).clamp(min=0) * (view.block_masks // steps)
        quota = view.left.sum(1) - later
        place = rank(candidates.confidence, view.masked)
        allowed = place < quota[:, None]
        return Decision(allowed & ((candidates.confidence >= self.threshold) | (place == 0)))
