"""Confidence threshold that rises with the number of tokens committed together (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.kernels.statistics import numbers
from dllm.options import Positive
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, ranking


@dataclass(frozen=True)
class Factor(Scheduler):
    """Commits the n most confident columns, n the largest with (n + 1) (1 - c_n) <= `factor`.

    c_n is the n-th largest confidence. Thresholds rise and confidences fall with n, so what
    passes is always a prefix of the ranking.
    """

    factor: Positive = 1.0
    # The last masked column is judged like the others; dInfer lets it pass with them whatever its
    # confidence, d2Cache keeps it back even if all pass.
    last: Literal["judged", "passes", "waits"] = "judged"

    source = "arXiv 2505.22618 section 3.3; dInfer decoding/generate_fastdllm.py"

    @property
    def never_waits(self) -> bool:
        return self.last != "waits"

    def select(self, candidates: Candidates, view: View) -> Decision:
        ranked, order = ranking(candidates.confidence, view.masked)
        place = numbers(order.shape[1], order.device)
        passed = (ranked >= 1 - self.factor / (place + 2)) | (place == 0)
        if self.last != "judged":
            passed = self._with_last(passed, place, view)
        return Decision(torch.empty_like(passed).scatter_(1, order, passed))

    def _with_last(self, passed: Tensor, place: Tensor, view: View) -> Tensor:
        """Returns which ranked columns (B, W) pass where the last masked one is not judged."""
        last = place == view.masked.sum(-1, keepdim=True) - 1
        if self.last == "waits":
            return passed & ~last
        return passed | (last & (passed.sum(-1, keepdim=True) >= place))
