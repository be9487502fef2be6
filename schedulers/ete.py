"""Explore-Then-Exploit, as reconstructed from its abstract: results are labelled ETE-R."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dllm.options import Amount, Count, CountOrNone, Probability, Range
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, Variants, View, best
from dllm.schedulers.blocks_ahead import window_of


@dataclass(frozen=True)
class ExploreThenExploit(Scheduler):
    """Commits sure columns, and settles one unsure column a round by trying tokens in it.

    What is the paper's: sure tokens carry little information, so a round should also explore an
    uncertain one, across block borders. What is a reconstruction: everything else, that is all
    parameters, which column is explored (`explore`: the least sure by a statistic, or the first
    unsure one, which has the most context) and how alternatives are compared. The defaults were
    chosen on validation problems of the embedded model; `paper_like` keeps to the abstract.

    `commit` mode writes the model's own token into the explored column. `branch` mode tries its
    `alternatives` most probable tokens as variants of the row in one forward pass, beside the row
    that just goes on, and keeps the one that makes the most columns sure, plus `likelihood_weight`
    times the log probability of the tried token.
    """

    threshold: Probability = 0.98  # probability, compared with >=
    cross_threshold: Probability | None = None  # beyond the row's block; None: the same
    blocks: Count = 1  # in which tokens are committed, the current one included
    mode: Literal["branch", "commit"] = "branch"
    alternatives: Annotated[int, Range(0, 255)] = (
        3  # tried tokens in branch mode; 0: no exploration
    )
    stalled_below: CountOrNone | None = None  # explore when fewer columns are sure; None: always
    scope: Literal["block", "window"] = "block"  # where the explored column is looked for
    explore: Literal["entropy", "confidence", "margin", "first"] = "first"  # which column
    plausibility: Probability = 0.1  # an alternative has at least this part of the top probability
    likelihood_weight: Amount = 6.0  # sure columns that one nat of improbability outweighs

    presets = {
        "paper_like": {"threshold": 0.9, "blocks": 2, "explore": "entropy"}
        | {"stalled_below": 2, "likelihood_weight": 1.0}
    }
    source = "arXiv 2511.21103 (abstract; no code or details are public)"
    statistic = "confidence; entropy, probabilities of the best tokens"

    def needs(self, num_slots: int, block_length: int) -> Needs:
        rows = 1 + self.alternatives if self.mode == "branch" else 1
        return Needs(window=window_of(self.blocks, num_slots, block_length), num_variants=rows)

    def select(self, candidates: Candidates, view: View) -> Decision:
        sure = self._sure(candidates, view)
        target = self._target(candidates, view, sure)  # (B, W), at most one column a row
        if self.mode == "commit":
            return Decision(sure | target)
        if self.alternatives == 0:
            return Decision(sure)
        return Decision(sure, variants=self._variants(candidates, view, sure, target))

    def appraise(self, candidates: Candidates, view: View, variants: Variants) -> Tensor:
        """Returns tokens that the variant fills or makes sure, plus its weighted likelihood.

        End tokens do not count: a variant must not win by ending the text.
        """
        told = self._sure(candidates, view) & ~view.is_end(candidates.token)
        gained = told.sum(1).view_as(variants.columns) + (variants.columns >= 0)
        weight = max(self.likelihood_weight, 1e-6)  # equal gains go to the likelier token
        return gained + weight * variants.confidence.log()

    def _sure(self, candidates: Candidates, view: View) -> Tensor:
        beyond = self.threshold if self.cross_threshold is None else self.cross_threshold
        passed = candidates.confidence >= self.threshold
        return view.masked & torch.where(view.block, passed, candidates.confidence >= beyond)

    def _target(self, candidates: Candidates, view: View, sure: Tensor) -> Tensor:
        """Returns the least sure masked column of each row that explores, (B, W) bool."""
        place = view.masked & ~sure
        if self.scope == "block":
            place = place & view.block
        else:  # beyond the block, the likeliest uncertain token is the end of a shorter text
            place = place & (view.block | ~view.is_end(candidates.token))
        target = best(self._interest(candidates, view), place)
        if self.stalled_below is None:
            return target
        return target & (sure.sum(1, keepdim=True) < self.stalled_below)

    def _interest(self, candidates: Candidates, view: View) -> Tensor:
        """Returns how much each column is worth exploring, (B, W)."""
        if self.explore == "first":
            return -view.columns.float()
        return -candidates.certainty(self.explore)

    def _variants(
        self, candidates: Candidates, view: View, sure: Tensor, target: Tensor
    ) -> Variants:
        """Returns the row as it would go on, and one variant for each alternative token."""
        at = target.int().argmax(1, keepdim=True)  # (B, 1)
        chance = candidates.at(at).probabilities().squeeze(1)
        chance[:, view.layout.mask_token_id] = 0
        probability, tokens = chance.topk(min(self.alternatives, chance.shape[1] - 1), dim=1)
        goes_on = self._best(candidates, view) & ~sure.any(1, keepdim=True)
        first = goes_on.int().argmax(1, keepdim=True)
        moves = goes_on.any(1, keepdim=True)
        column = torch.where(moves, view.columns.gather(1, first), -1)
        confidence = torch.where(moves, candidates.confidence.gather(1, first), 1)
        # With one column left there is nothing to look ahead to.
        needed = target.any(1) & ((view.masked & ~sure).sum(1) > 1)
        plausible = probability >= self.plausibility * probability[:, :1]
        return Variants(
            columns=torch.cat([column, view.columns.gather(1, at).expand_as(tokens)], 1),
            tokens=torch.cat([candidates.token.gather(1, first), tokens], 1),
            confidence=torch.cat([confidence, probability], 1),
            valid=torch.cat([torch.ones_like(moves), plausible], 1),
            needed=needed,
        )
