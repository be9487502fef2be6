"""WeDLM's streaming decoding: a window that begins at the first mask, and sure columns near it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.options import Amount
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, best


@dataclass(frozen=True)
class WeDLM(Scheduler):
    """Commits columns of entropy < `threshold`, `penalty` added for each column after the first.

    Of the window's columns, counted from its first mask; where none passes, the one with the
    smallest sum. The block is the window: after each step it moves on to the first mask, so that
    it keeps its length (`block_length`, the authors' 16). Without a threshold one column a step.
    """

    threshold: Amount | None = 0.4  # nats, compared with <; None: one column a step
    penalty: Amount = 0.02  # nats a column

    source = "arXiv 2512.22737; Tencent/WeDLM wedlm/engine/wedlm_decoder.py, sampler.py"
    statistic = "entropy"

    @property
    def never_waits(self) -> bool:
        return True

    def select(self, candidates: Candidates, view: View) -> Decision:
        first = view.columns.gather(1, view.masked.int().argmax(1, keepdim=True))
        distance = (view.columns - first).to(candidates.entropy.dtype)
        unsure = candidates.entropy + self.penalty * distance
        commit = best(-unsure, view.masked)
        if self.threshold is not None:
            passed = (unsure < self.threshold) & view.masked
            commit = torch.where(passed.any(1, keepdim=True), passed, commit)
        return Decision(commit, block_end=self._end(commit, view))

    def _end(self, commit: Tensor, view: View) -> Tensor:
        """Returns where the block ends, (B,): before the first mask that is left in it.

        It stays as it is while that is its first column, or where none is left.
        """
        start = view.columns.gather(1, view.first_of_block()[:, None])[:, 0]
        end = start + view.block.sum(1)
        left = view.left & ~commit
        first = torch.where(left, view.columns, end[:, None]).amin(1)
        return torch.where(first > start, first, end)
