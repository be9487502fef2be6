"""Running confidence re-masking (RCR): the schedule says how many tokens, not which ones stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Count
from dllm.schedulers.base import Candidates, Decision, Scheduler, Setup, State, View, rank


@dataclass(frozen=True)
class RunningConfidence(Scheduler):
    """Keeps the tokens of the block with the highest confidence when last predicted.

    After step t of s a block of n columns holds n - floor(n r(t/s)) tokens; r is 1 - x (`linear`)
    or cos(pi x / 2) (`cosine`). A token counts with the confidence at which it was last committed;
    if masks now promise more, it is masked again in their favour. Every step adds a token at
    least, so a block takes its share of `steps`, or as many as it has masks if that is less.

    Only the current block is revised. The authors' code also opens earlier ones, whose tokens are
    then predicted again together with the block.
    """

    steps: Count | None = None  # in total over all blocks; None: one more token a step
    schedule: Literal["linear", "cosine"] = "linear"

    can_revise = True
    source = (
        "arXiv 2508.13148; autonomousvision/mdpo mdlm_generation_utils.py:diffusion_generate (rcr)"
    )
    statistic = "confidence when last predicted"

    def check(self, num_blocks: int, block_length: int) -> None:
        self._check_steps(self.steps, num_blocks)

    def revision_limit(self, block_length: int) -> int:
        # A step leaves one token more than it found, if not many: after as many steps as the block
        # has columns no mask is left.
        return block_length

    def start(self, setup: Setup) -> State:
        size = (setup.num_rows, setup.width)
        return {"running": torch.ones(size, dtype=setup.dtype, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        held = view.committed & view.block & view.known
        # 1: what was never predicted in this block is not taken back.
        before = view.state["running"].masked_fill(view.fresh[:, None], 1)
        running = torch.where(masked, candidates.confidence, before)
        either = masked | held
        kept = torch.maximum(either.sum(1) - self._num_masks(view), held.sum(1) + 1)
        keep = rank(running, either) < kept[:, None]
        return Decision(masked & keep, remask=held & ~keep, state={"running": running})

    def _num_masks(self, view: View) -> Tensor:
        """Returns how many masks the schedule leaves the block after this step, (B,) int64."""
        total = (view.block & ~view.fixed).sum(1)
        steps = total if self.steps is None else self.steps // view.num_blocks
        left = (steps - view.block_step - 1).clamp(min=0)
        if self.schedule == "linear":
            return total * left // steps.clamp(min=1)
        ratio = torch.sin(left.double() / steps.clamp(min=1) * math.pi / 2)  # cos of what is over
        return (total * ratio + 1e-9).floor().long()  # a whole product may come out just below it
