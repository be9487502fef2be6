"""Entropy bound (EB-sampler): as many columns as their joint error allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Amount
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, ranking


@dataclass(frozen=True)
class EntropyBound(Scheduler):
    """Commits the longest ranked run whose entropies sum, without the largest, to <= `bound`.

    That sum bounds how far committing them together is from committing them one by one. The first
    of the ranking always goes: alone, it leaves nothing to sum.
    """

    bound: Amount = 0.1  # nats
    order: Literal["entropy", "confidence", "margin"] = "entropy"

    never_waits = True
    source = "arXiv 2505.24857; sgl-project/sglang, Kamichanw/d2Cache (no own code)"
    statistic = "entropy"
    published = "two to three times fewer forwards at equal quality (abstract)"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.certainty(self.order)

    def select(self, candidates: Candidates, view: View) -> Decision:
        ranked, order = ranking(self.score(candidates), view.masked)
        # Each entropy adds itself, or what was the largest if it is larger. The sum less the
        # largest would lose small entropies to rounding.
        if self.order == "entropy":  # which is the score, negative: each is the largest so far
            passed = ranked[:, :-1].cumsum(1) >= -self.bound
        else:
            entropy = candidates.entropy.where(view.masked, 0).gather(1, order)
            largest = entropy.cummax(1).values[:, :-1]
            passed = torch.minimum(entropy[:, 1:], largest).cumsum(1) <= self.bound
        return Decision(torch.ones_like(view.masked).scatter_(1, order[:, 1:], passed))
