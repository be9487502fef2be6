"""Look-ahead parallel decoding (LoPA): variants that each commit one more column compete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.options import Count, Probability, Rows
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, Variants, View, best, rank
from dllm.schedulers.blocks_ahead import active_columns, open_columns, window_of


@dataclass(frozen=True)
class LookAhead(Scheduler):
    """Commits columns > `threshold` of the open blocks, and tries one further column a variant.

    The variants commit the most confident of the columns that did not pass, one each. The next
    pass runs all of them beside the row itself and goes on from the one whose masks are the most
    confident on average (`measure`), a variant without masks first of all. Equal scores go to the
    row itself, where the authors' code prefers the variant.
    """

    threshold: Probability = 0.9
    branches: Rows = 4  # rows of a forward pass, the row itself included; 1: no look-ahead
    blocks: Count = 2  # open at most, the current one included
    add_threshold: Probability = 0.1
    active_threshold: Probability = 0.95
    measure: Literal["confidence", "entropy"] = "confidence"

    source = "arXiv 2512.16229; zhijie-group/LoPA"
    statistic = "confidence or entropy, averaged over a variant's masks"
    published = (
        "D2F-Dream: 10.1 tokens a forward on GSM8K at 73.8 % (D2F alone 3.1 at 78.5 %); "
        "forwards count rounds, not rows (arXiv 2512.16229)"
    )
    presets = {
        "math": {"threshold": 0.9, "add_threshold": 0.1},
        "code": {"threshold": 0.95, "add_threshold": 0.3},
    }

    def needs(self, num_slots: int, block_length: int) -> Needs:
        window = window_of(self.blocks, num_slots, block_length)
        return Needs(window=window, num_variants=self.branches)

    def select(self, candidates: Candidates, view: View) -> Decision:
        opened = open_columns(view, self.blocks, self.add_threshold)
        passed = (candidates.confidence > self.threshold) & opened
        active = active_columns(view, self.blocks, self.active_threshold) & opened
        surest = best(candidates.confidence, active)
        commit = torch.where((passed & active).any(1, keepdim=True), passed, passed | surest)
        if self.branches == 1:
            return Decision(commit)
        return Decision(commit, variants=self._variants(candidates, view, opened & ~commit))

    def appraise(self, candidates: Candidates, view: View, variants: Variants) -> Tensor:
        """Returns the mean certainty of each variant's masks, infinity where none is left."""
        masks = view.masked.sum(1)
        total = torch.where(view.masked, candidates.certainty(self.measure), 0).sum(1)
        mean = total / masks.clamp(min=1)
        return mean.masked_fill(masks == 0, torch.inf).view_as(variants.columns)

    def _variants(self, candidates: Candidates, view: View, left: Tensor) -> Variants:
        """Returns the row itself, and the row with each of the best columns of `left` (B, W)."""
        order = rank(candidates.confidence, left).argsort(dim=1)[:, : self.branches - 1]
        valid = left.gather(1, order)
        columns = torch.where(valid, view.columns.gather(1, order), -1)
        around = (1, self.branches - 1 - order.shape[1])  # the row itself; what finds no column
        return Variants(
            columns=F.pad(columns, around, value=-1),
            tokens=F.pad(candidates.token.gather(1, order), around),
            confidence=F.pad(candidates.confidence.gather(1, order), around, value=1),
            valid=F.pad(F.pad(valid, (1, 0), value=True), (0, around[1])),
            # With one column left there is nothing to look ahead to.
            needed=valid.any(1) & (view.masked.sum(1) > 1),
        )
