"""Credit decoding (dInfer): a token that is proposed again and again becomes surer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm.candidates import Candidates
from dllm.schedulers.base import Decision, Scheduler, Setup
from dllm.schedulers.view import State, View


@dataclass(frozen=True)
class Credit(Scheduler):
    """Commits what passes `threshold` after each token's logit gained from its past proposals.

    A column's credit for a token fades by `decay` a step and grows by the token's probability to
    the power `growth` when it is proposed; the logit gains `weight` times ln(1 + credit). Credits
    begin anew with each block. The proposals count, so tokens are not sampled anew here.
    """

    threshold: float = 0.8  # probability after the gain, compared with >=
    weight: float = 0.7
    decay: float = 0.8
    growth: float = 0.2

    source: ClassVar[str] = "inclusionAI/dInfer decoding/parallel_strategy.py (CreditDecoding)"
    statistic: ClassVar[str] = "confidence, past proposals"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1): credits would grow forever")

    def start(self, setup: Setup) -> State:
        size = (setup.num_rows, setup.width, setup.vocab_size)
        return {"credit": torch.zeros(size, dtype=setup.dtype, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        fresh = (view.block_step == 0)[:, None, None]
        credit = torch.where(fresh, 0, view.state["credit"] * self.decay)
        vote = torch.where(view.masked, candidates.confidence**self.growth, 0)
        credit = credit.scatter_add(2, candidates.token[..., None], vote[..., None])
        logits = candidates.logits + self.weight * torch.log1p(credit)
        proposed = logits.clone()
        proposed[..., view.layout.mask_token_id] = -torch.inf
        fused = Candidates(logits, proposed.argmax(-1))
        best = fused.confidence.masked_fill(~view.masked, -1)
        first = best.argmax(1, keepdim=True)
        commit = (fused.confidence >= self.threshold).scatter(1, first, True)
        return Decision(commit, tokens=fused.token, state={"credit": credit})
