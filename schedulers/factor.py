"""Confidence threshold that rises with the number of tokens committed together (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dllm.options import Positive
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, rank


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

    def select(self, candidates: Candidates, view: View) -> Decision:
        place = rank(candidates.confidence, view.masked)
        passed = candidates.confidence >= 1 - self.factor / (place + 2)
        passed = (passed | (place == 0)) & view.masked
        last = place == view.masked.sum(-1, keepdim=True) - 1
        if self.last == "passes":
            passed = passed | (last & (passed.sum(-1, keepdim=True) >= place))
        if self.last == "waits":
            passed = passed & ~last
        return Decision(passed)
