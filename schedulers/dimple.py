"""Confident decoding (Dimple): a threshold over the whole row, a time grid where none passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Needs, Scheduler
from dllm.schedulers.view import View


@dataclass(frozen=True)
class Dimple(Scheduler):
    """Commits columns > `threshold` anywhere in the row; if none is, what the time grid asks for.

    The grid falls linearly from 1 to `epsilon` in `steps`; the fallback takes the first later time
    at which at least one of the row's masks is due, in the order of `order`. The last step commits
    all that is left.
    """

    threshold: float = 0.95  # probability, compared with >
    steps: int | None = None  # None: as many as slots
    order: Literal["confidence", "margin", "entropy", "first"] = "confidence"
    epsilon: float = 1e-3

    source: ClassVar[str] = "yu-rp/Dimple generation_utils.py (alg_p_threshold)"

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(whole_row=True)

    def select(self, candidates: Candidates, view: View) -> Decision:
        passed = (candidates.confidence > self.threshold) & view.masked
        due = rank(self._order(candidates, view), view.masked) < self._due(view)
        last = (view.step + 1 >= self._steps(view))[:, None]
        return Decision(torch.where(passed.any(1, keepdim=True), passed, due) | last)

    def _order(self, candidates: Candidates, view: View) -> Tensor:
        if self.order == "first":
            return -view.columns.float()
        return -candidates.entropy if self.order == "entropy" else getattr(candidates, self.order)

    def _steps(self, view: View) -> Tensor:
        return view.num_slots if self.steps is None else torch.full_like(view.step, self.steps)

    def _due(self, view: View) -> Tensor:
        """Returns how many masks go where none is sure, (B, 1) int64, at least 1."""
        steps = self._steps(view)[:, None]
        most = view.layout.num_slots if self.steps is None else self.steps
        index = torch.arange(most + 1, device=steps.device)
        times = 1 - index * (1 - self.epsilon) / steps
        left = ((view.tokens == view.layout.mask_token_id) & ~view.fixed).sum(1, keepdim=True)
        due = (left - view.num_slots[:, None] * times).floor().long()
        later = (index > view.step[:, None]) & (index <= steps) & (due >= 1)
        first = due.gather(1, later.int().argmax(1, keepdim=True))
        return torch.where(later.any(1, keepdim=True), first, left)
