"""The four algorithms of Dream: a time grid says how many tokens, a score says which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from dllm.options import Amount, Count, Range
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, rank


@dataclass(frozen=True)
class Dream(Scheduler):
    """Commits floor(m (1 - s/t)) of m masks between grid times t and s, all at the last step.

    Times fall linearly from 1 to `epsilon`; `origin` unmasks each column with probability
    1 - s/t instead. Where the floor is 0 the reference pays for a forward that changes nothing;
    here the row moves on to its next time, unless `empty_steps`.
    """

    algorithm: Literal["entropy", "maskgit_plus", "topk_margin", "origin"] = "entropy"
    steps: Count | None = None  # in total over all blocks; None: as many as masks
    order_temperature: Amount = 0.0  # above 0 the order is sampled (Dream's alg_temp)
    epsilon: Annotated[float, Range(0, 1, below=True)] = 1e-3
    empty_steps: bool = False

    source = "arXiv 2508.15487; DreamLM/Dream generation_utils.py:_sample"
    confidence = "tempered"

    @property
    def may_skip(self) -> bool:
        return self.empty_steps or self.algorithm == "origin"

    def check(self, num_blocks: int, block_length: int) -> None:
        self._check_steps(self.steps, num_blocks)

    def score(self, candidates: Candidates) -> Tensor:
        if self.algorithm == "entropy":
            return -candidates.entropy
        return candidates.margin if self.algorithm == "topk_margin" else candidates.confidence

    def select(self, candidates: Candidates, view: View) -> Decision:
        fraction = self._fractions(view)  # (B, S)
        now = view.block_step[:, None].clamp(max=fraction.shape[1] - 1)
        if self.algorithm == "origin":
            return Decision(view.uniform() < fraction.gather(1, now))
        counts = (view.left.sum(1, keepdim=True).float() * fraction).long()
        if not self.empty_steps:
            times = torch.arange(fraction.shape[1], device=now.device)
            after = ((counts > 0) & (times >= now)).int().argmax(1, keepdim=True)
            now = torch.maximum(after, now)
        commit = rank(self._order(candidates, view), view.masked) < counts.gather(1, now)
        return Decision(commit, num_steps=now.squeeze(1) - view.block_step + 1)

    def _order(self, candidates: Candidates, view: View) -> Tensor:
        """Returns the score, with Gumbel noise if the order is sampled without replacement."""
        score = self.score(candidates)
        if self.order_temperature <= 0:
            return score
        return score / self.order_temperature - torch.log(-torch.log(view.uniform()))

    def _fractions(self, view: View) -> Tensor:
        """Returns the part of its masks that each row commits at each time, (B, S) float32."""
        device = view.masked.device
        if self.steps is None:
            most = range(view.masked.shape[1] + 1)
            return _time_grids(tuple(most), self.epsilon, device)[view.block_masks]
        layout = view.layout
        steps = tuple(self.steps // count for count in range(1, layout.most_blocks + 1))
        return _time_grids(steps, self.epsilon, device)[view.num_blocks - 1]


@lru_cache(maxsize=8)
def _time_grids(numbers: tuple[int, ...], epsilon: float, device: torch.device) -> Tensor:
    """Returns 1 - s/t of a grid of each of some numbers of steps, (n, most steps) float32.

    float32 as in the reference: in higher precision some floors would come out differently.
    """
    grids = torch.ones(len(numbers), max(numbers))
    for row, steps in enumerate(numbers):
        if steps > 1:
            times = torch.linspace(1, epsilon, steps + 1)
            grids[row, : steps - 1] = (1 - times[1:] / times[:-1])[:-1]
    return grids.to(device)
