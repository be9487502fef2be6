"""Local determinism propagation (LocalLeap): near a sure column, less is enough."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn import functional as F

from dllm.options import CountOrNone, Probability
from dllm.schedulers.base import Candidates, Decision, Scheduler, View


@dataclass(frozen=True)
class LocalLeap(Scheduler):
    """Commits columns >= `threshold`, and those >= `relaxed_threshold` within `radius` of one.

    Only columns that pass `threshold` in this step are anchors: a neighbour taken at the relaxed
    threshold does not carry on.
    """

    threshold: Probability = 0.9  # probability, compared with >=
    relaxed_threshold: Probability = 0.75
    radius: CountOrNone = 4  # columns on either side

    source = "arXiv 2510.07081; generate() vendored from the authors' repository"

    def select(self, candidates: Candidates, view: View) -> Decision:
        confidence = candidates.confidence
        anchors = (confidence >= self.threshold) & view.masked
        radius = min(self.radius, anchors.shape[1])  # further away there is nothing
        near = F.max_pool1d(anchors.float()[:, None], 2 * radius + 1, 1, radius)[:, 0] > 0
        return Decision(anchors | (near & (confidence >= self.relaxed_threshold)))
