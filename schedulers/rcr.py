"""Running confidence re-masking (RCR): the schedule says how many tokens, not which ones stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Scheduler, Setup
from dllm.schedulers.view import State, View


@dataclass(frozen=True)
class RunningConfidence(Scheduler):
    """Keeps the tokens of the block with the highest confidence when last predicted.

    After step t of s a block holds n - floor(n r(t/s)) tokens, n of them in the end; r is 1 - x
    (`linear`) or cos(pi x / 2) (`cosine`). A token that falls behind what masks now promise is
    masked again. Only the current block is revised; the reference also opens earlier ones.
    """

    steps: int | None = None  # in total over all blocks; None: one more token a step
    schedule: Literal["linear", "cosine"] = "linear"

    source: ClassVar[str] = "arXiv 2508.13148 (MDPO); furiosa-ai/ParallelBench's copy of its code"
    statistic: ClassVar[str] = "confidence when last predicted"

    @property
    def can_revise(self) -> bool:
        return True

    def check(self, num_blocks: int, block_length: int) -> None:
        if self.steps is not None and (self.steps < num_blocks or self.steps % num_blocks):
            raise ValueError(
                f"steps={self.steps} is the total and must be a positive multiple of the "
                f"{num_blocks} blocks"
            )

    def revision_limit(self, block_length: int) -> int:
        return block_length  # each step adds a token at least

    def start(self, setup: Setup) -> State:
        size = (setup.num_rows, setup.width)
        return {"running": torch.zeros(size, dtype=setup.dtype, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        held = view.committed & view.block
        running = torch.where(view.masked, candidates.confidence, view.state["running"])
        keep = rank(running, view.masked | held) < self._kept(view)[:, None]
        commit = view.masked & keep
        return Decision(commit, remask=held & ~keep, state={"running": running})

    def _kept(self, view: View) -> Tensor:
        """Returns how many tokens the block holds after this step, (B,) int64."""
        total = view.block_masks
        steps = total if self.steps is None else self.steps // view.num_blocks
        passed = ((view.block_step + 1) / steps).clamp(max=1).double()
        left = 1 - passed if self.schedule == "linear" else torch.cos(passed * math.pi / 2)
        # 1e-9: a product that should be whole may come out just below it.
        kept = total - (total * left + 1e-9).floor().long()
        return torch.maximum(kept, view.block_step + 1)
