"""Several blocks at once, opened one after the other (D2F, d3LLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Count, Probability
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, View, best
from dllm.schedulers.blocks_ahead import active_columns, open_columns, window_of


@dataclass(frozen=True)
class MultiBlock(Scheduler):
    """Commits what passes `threshold` in every open block; a block opens as the last one fills.

    The next block opens when `add_threshold` of the last is decoded. One commit is certain in the
    first block with masks whose predecessor is decoded to `active_threshold`. With
    statistic='entropy' columns pass whose entropy is at most `threshold` nats.
    """

    threshold: Probability = 0.9
    blocks: Count = 2  # open at most, the current one included
    add_threshold: Probability = 0.1
    active_threshold: Probability = 0.95
    measure: Literal["confidence", "entropy"] = "confidence"

    source = "arXiv 2508.09192 (D2F); hao-ai-lab/d3LLM and SJTU-DENG-Lab/Diffulex decoding"
    statistic = "confidence or entropy"
    published = (
        "distilled models, GSM8K: d3LLM-LLaDA 9.11 tokens a forward at 73.09 %, "
        "d3LLM-Dream 4.94 at 81.36 % (hao-ai-lab/d3LLM leaderboard)"
    )
    presets = {
        "d3llm": {"threshold": 0.5, "measure": "entropy", "blocks": 4},
        "d2f": {"threshold": 0.9, "blocks": 4},
    }

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(window=window_of(self.blocks, num_slots, block_length))

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.certainty(self.measure)

    def select(self, candidates: Candidates, view: View) -> Decision:
        limit = -self.threshold if self.measure == "entropy" else self.threshold
        opened = open_columns(view, self.blocks, self.add_threshold)
        passed = (self.score(candidates) >= limit) & opened
        active = active_columns(view, self.blocks, self.active_threshold) & opened
        surest = best(self.score(candidates), active)
        stuck = ~(passed & active).any(1, keepdim=True)
        return Decision(torch.where(stuck, passed | surest, passed))
