"""Wide in, narrow out (WINO): commit freely, and mask again what the rest does not support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.options import Count, Probability
from dllm.schedulers.base import Decision, ModelSpec, Needs, Scheduler, Setup, State, View
from dllm.state.candidates import Candidates, rank

_FIRST_ACCEPT = 30  # as if so many had been accepted before a block's first step


@dataclass(frozen=True)
class Wino(Scheduler):
    """Commits columns > `threshold`, and masks tokens whose shadow gives them < `threshold_back`.

    A shadow is the column fed once more as a mask, in the same pass: it does not see the token it
    judges, though the tokens around it do. A step commits at most `share` of the block's masks,
    from `least` to `most`; it masks again only if it commits more than one token, and fewer than
    the step before committed, so a block takes no more steps than it has columns. Tokens are
    judged from the step after their own on.
    """

    threshold: Probability = 0.6  # probability, compared with >
    threshold_back: Probability = 0.9
    share: Probability = 0.7
    least: Count = 5
    most: Count = 20

    constant_needs = Needs(shadow=True)
    can_revise = True
    source = "arXiv 2507.18578; Feng-Hong/WINO-DLLM LLaDA/decoding.py:decoding_wino"
    statistic = "confidence; shadow's probability of the committed token"
    presets = {
        "gsm8k": {"threshold": 0.6},
        "math": {"threshold": 0.7},
        "humaneval": {"threshold": 0.7},
        "mbpp": {"threshold": 0.8},
        "arc": {"threshold": 0.5},
        "countdown": {"threshold": 0.5},
        "sudoku": {"threshold": 0.7},
    }

    def revision_limit(self, block_length: int) -> int:
        # What a step masks again is less than what the step before committed, so n steps leave at
        # least n tokens: no block comes to this.
        return block_length

    def check_model(self, spec: ModelSpec) -> None:
        if spec.logit_shift or spec.attention != "full":
            raise ValueError(
                "scheduler 'wino' needs bidirectional attention and logits that are not shifted: a "
                f"shadow stands at its own column; this model has attention={spec.attention!r} "
                f"and logit_shift={spec.logit_shift}"
            )

    def start(self, setup: Setup) -> State:
        return {"accepted": torch.full((setup.num_rows,), _FIRST_ACCEPT, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        masks = view.masked.sum(1, keepdim=True)
        cap = (self.share * masks).long().clamp(self.least, self.most)
        place = rank(candidates.confidence, view.masked)
        passed = (candidates.confidence > self.threshold) & (place < cap)
        commit = (passed | (place == 0)) & view.masked
        accepted = commit.sum(1)
        remask = self._doubted(view) & (accepted > 1)[:, None]
        return Decision(commit, remask=remask, state={"accepted": accepted})

    def _doubted(self, view: View) -> Tensor:
        """Returns the least supported tokens of the block, fewer than were just committed."""
        assert view.shadow is not None
        support = view.shadow.log_prob(view.tokens).exp()
        doubted = view.committed & view.block & (support < self.threshold_back)
        last = torch.where(view.fresh, _FIRST_ACCEPT, view.state["accepted"])
        return doubted & (rank(-support, doubted) < (last - 1)[:, None])
