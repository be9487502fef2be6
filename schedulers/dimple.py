"""Confident decoding (Dimple): a threshold over the whole row, a time grid where none passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dllm.options import Count, Probability, Range
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, View, rank


@dataclass(frozen=True)
class Dimple(Scheduler):
    """Commits columns > `threshold` anywhere in the row; if none is, what the time grid asks for.

    The grid falls linearly from 1 to `epsilon` in `steps`; the fallback goes to the first later
    time at which at least one of the row's masks is due, and takes the best by `order` (`first`:
    the leftmost alone). The last step commits all that is left. Blocks play no part, except in
    what a cache feeds.
    """

    threshold: Probability = 0.95  # probability, compared with >
    steps: Count | None = None  # in total; None: as many as slots
    order: Literal["confidence", "margin", "entropy", "random", "first"] = "confidence"
    epsilon: Annotated[float, Range(0, 1, below=True)] = 1e-3

    constant_needs = Needs(whole_row=True)
    source = "arXiv 2505.16990; yu-rp/Dimple generation_utils.py:_sample (dim)"
    published = "a third as many forwards as tokens (abstract)"
    anywhere = True

    def select(self, candidates: Candidates, view: View) -> Decision:
        passed = (candidates.confidence > self.threshold) & view.masked
        due = rank(self._order(candidates, view), view.masked) < self._due(view)
        last = (view.step + 1 >= self._steps(view))[:, None]
        return Decision(torch.where(passed.any(1, keepdim=True), passed, due) | last)

    def _order(self, candidates: Candidates, view: View) -> Tensor:
        if self.order == "random":
            return view.uniform()
        if self.order == "first":
            return -view.columns.float()
        return candidates.certainty(self.order)

    def _steps(self, view: View) -> Tensor:
        return view.num_slots if self.steps is None else torch.full_like(view.step, self.steps)

    def _due(self, view: View) -> Tensor:
        """Returns how many masks go where none is sure, (B, 1) int64, at least 1.

        floor(m (1 - t/r)) at a time t of the grid, if the m masks that are left are the part r of
        all: as many as lead from r to t.
        """
        left = ((view.tokens == view.layout.mask_token_id) & ~view.fixed).sum(1, keepdim=True)
        if self.order == "first":
            return torch.ones_like(left)
        steps, total = self._steps(view)[:, None], view.num_slots[:, None]
        most = view.layout.num_slots if self.steps is None else self.steps
        index = torch.arange(most + 1, device=left.device)
        gone = index * total.double() * (1 - self.epsilon) / steps
        due = torch.where(index >= steps, left, gone.long() - (total - left))
        later = (index > view.step[:, None]) & (due >= 1)
        first = due.gather(1, later.int().argmax(1, keepdim=True))
        return torch.where(later.any(1, keepdim=True), first, left)
