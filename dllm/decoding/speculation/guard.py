"""What drafts and guards ask of a decision: the same candidates again, or similar ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.schedulers import Scheduler, View
from dllm.state.candidates import Candidates, Sampling
from dllm.state.noise import Noise


def is_steady(scheduler: Scheduler, candidates: Candidates, view: View, guard: float) -> Tensor:
    """Returns which rows decide the same if logits are a little different, (B,) bool.

    A row does if every token that it commits is more probable than the second best by `guard`, no
    column that it commits is within `guard` of the confidence of one that it leaves, and it
    commits the same columns with all logits `guard` times larger or smaller. The last is what
    tells how near a threshold is; bfloat16 rounds a logit by up to 0.4 % of it.
    """
    commit = scheduler.decide(candidates, view).commit
    left = view.masked & view.known & ~commit
    sure = ((candidates.margin >= guard) | ~commit).all(1)
    confidence = candidates.confidence
    near = (confidence[:, :, None] - confidence[:, None]).abs() < guard
    apart = ~(near & commit[:, :, None] & left[:, None]).flatten(1).any(1)
    return sure & apart & _same(scheduler, candidates, view, commit, guard)


def _same(
    scheduler: Scheduler, candidates: Candidates, view: View, commit: Tensor, guard: float
) -> Tensor:
    same = torch.ones_like(commit[:, 0])
    for factor in (1 - guard, 1 + guard):
        raw = None if candidates.raw is None else candidates.raw * factor
        moved = replace(candidates, logits=candidates.logits * factor, raw=raw)
        same = same & (scheduler.decide(moved, view).commit == commit).all(1)
    return same


@dataclass(frozen=True)
class Known(Sampling):
    """Candidates that are known already: without noise each step proposes the same."""

    candidates: Candidates | None = None

    def propose(
        self,
        logits: Tensor,
        noise: Noise,
        columns: Tensor,
        step: Tensor,
        places: Tensor | None = None,
    ) -> Candidates:
        assert self.candidates is not None
        return self.candidates
