"""A threshold that falls while the model is decided and rises while its distributions move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.kernels.statistics import rows_at
from dllm.options import Amount, Probability
from dllm.schedulers.base import (
    Candidates,
    Decision,
    Needs,
    Replaced,
    Scheduler,
    Setup,
    State,
    View,
    best,
)


@dataclass(frozen=True)
class DynamicThreshold(Scheduler):
    """Commits columns >= a threshold that every step moves, and the block's most confident one.

    It is `threshold` in the first step, goes on from block to block, and nothing bounds it. Each
    later step takes `fall` times 1 - (second largest probability) off and adds `rise` times
    1 - cosine(distribution now, the one before), means over the masks of the block; with
    `per_column` each column has a threshold of its own, which moves before its block's turn too.

    The authors average over the masks of all rows of a batch, here a row does not depend on its
    batch. Where a cache computes a column seldom, it is compared with what it was when last
    computed. Their example runs a plain threshold of 0.9, with all of this switched off.
    """

    threshold: Probability = 1.0  # probability before the first step, compared with >=
    fall: Amount = 0.01  # a step, of a model that has no second choice
    rise: Amount = 0.15  # a step, of a distribution that has nothing of the one before
    per_column: bool = False

    never_waits = True
    constant_needs = Needs(whole_row=True, some_distributions=True)
    source = "arXiv 2606.26120; TianyiWu233/DYNAMIC-DLLM utils/generate_function.py:generate_pd"
    statistic = "confidence; second largest probability, cosine with the last distribution"
    presets = {
        "published": {"threshold": 1.0, "fall": 0.01, "rise": 0.15},
        "per_column": {"per_column": True},
    }

    def start(self, setup: Setup) -> State:
        # One more than there are slots: there goes what is not known or no slot.
        size = (setup.num_rows, setup.num_slots + 1)
        zero = torch.zeros((), dtype=setup.dtype, device=setup.device)
        each = size if self.per_column else (setup.num_rows, 1)
        return {
            "distribution": zero.expand(*size, setup.vocab_size),
            "seen": torch.zeros(size, dtype=torch.bool, device=setup.device),
            "threshold": torch.full(each, self.threshold, dtype=setup.dtype, device=setup.device),
        }

    def select(self, candidates: Candidates, view: View) -> Decision:
        before, seen = view.state["distribution"], view.state["seen"]
        other = before.shape[1] - 1
        slot = torch.where(
            view.known & (view.offset >= 0) & (view.offset < other), view.offset, other
        )
        at = slot if candidates.places is None else slot.gather(1, candidates.places)
        now = candidates.probabilities()
        moved = 1 - torch.cosine_similarity(now, rows_at(before, at), dim=-1)
        second = now.topk(2, dim=-1).values[..., 1]
        change = candidates.spread(self.rise * moved - self.fall * (1 - second), 0)
        compared = seen.gather(1, slot) & (slot < other)
        threshold = self._moved(view, slot, change.masked_fill(~compared, 0), compared)
        needed = threshold.gather(1, slot) if self.per_column else threshold
        state = {"seen": seen.scatter(1, slot, True), "threshold": threshold}
        sure = candidates.confidence
        commit = (sure >= needed) & view.block
        commit = commit | best(sure, view.masked & view.block)
        return Decision(commit, state=state, replaced={"distribution": Replaced(at, now)})

    def _moved(self, view: View, slot: Tensor, change: Tensor, compared: Tensor) -> Tensor:
        """Returns the threshold of each row (B, 1), or slot (B, S), after changes (B, W)."""
        before = view.state["threshold"]
        if self.per_column:
            return before.scatter_add(1, slot, change)
        masks = view.masked & view.block & compared
        count = masks.sum(1, keepdim=True)
        return before + torch.where(masks, change, 0).sum(1, keepdim=True) / count.clamp(min=1)
