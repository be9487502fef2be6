"""SlowFast sampling: look for a span that is about to settle, then decode it fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from dllm.options import MOST, Amount, Count, Probability, Range
from dllm.schedulers.base import Candidates, Decision, Scheduler, Setup, State, View, best


@dataclass(frozen=True)
class SlowFast(Scheduler):
    """Commits one column a step until a span's end holds still, then all >= `high` inside it.

    A slow step notes the last mask of the block that reaches `low`, or the span's start if none
    does. When the variance of the last `window` notes is below `variance`, the span ends with the
    latest; after `most_slow` steps without that, with their mean. It is decoded fast: what reaches
    `high`, else the best column. The next span begins at its end.

    The authors use one block for the whole text (`block_length` = `max_new_tokens`), and from a
    span's second fast step on they leave out the text behind it; here every pass is complete.
    Their code commits all columns >= `high` in slow steps too (`slow="sure"`), and takes all
    `most_slow` of them even if the end has held still before (`early=False`).
    """

    high: Probability = 0.85  # probability, compared with >=
    low: Probability = 0.1  # the same
    most_slow: Count = 8  # steps
    window: Annotated[int, Range(2, MOST)] = 2  # notes
    variance: Amount = 1.0  # squared columns
    slow: Literal["best", "sure"] = "best"  # what a slow step commits
    early: bool = True  # the slow phase ends when the end holds still

    source = "arXiv 2506.10848; LiangrunFlora/Slow-Fast-Sampling generate_slow_fast_sampling.py"
    statistic = "confidence; last column where it is not low"
    published = (
        "LLaDA-8B-Base: GSM8K 69.83 -> 69.59 % at 3.2x tokens/s, MMLU 62.11 -> 66.56 % at 3.35x "
        "(paper)"
    )
    presets = {
        "paper": {"high": 0.85, "low": 0.1, "most_slow": 8},
        "code": {"high": 0.9, "low": 0.3, "most_slow": 6, "slow": "sure", "early": False},
    }

    def start(self, setup: Setup) -> State:
        none = torch.full((setup.num_rows,), -1, device=setup.device)
        return {
            "start": none,  # column at which the span starts
            "end": none,  # column before which it ends, -1 while that is open
            "fast": none >= 0,
            "slow_steps": none + 1,  # of this span
            "notes": torch.full((setup.num_rows, self.window), torch.nan, device=setup.device),
        }

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        span = masked & (view.columns < view.state["end"][:, None])
        fast = view.state["fast"] & ~view.fresh & span.any(1)
        place = torch.where(fast[:, None], span, masked)
        surest = best(candidates.confidence, place)
        sure = place & (candidates.confidence >= self.high)
        commit = surest | sure if self.slow == "sure" else surest | (sure & fast[:, None])
        return Decision(commit, state=self._state(candidates, view, masked, fast))

    def _state(self, candidates: Candidates, view: View, masked: Tensor, fast: Tensor) -> State:
        """Returns the state after a step that was `fast` (B,), or one more slow one."""
        # A span that is full is over: this step then begins the next one.
        begins = view.fresh | view.state["fast"]
        slow_steps = torch.where(begins, 0, view.state["slow_steps"]) + 1
        first = view.columns.gather(1, view.first_of_block()[:, None])[:, 0]
        start = torch.where(begins, view.state["end"], view.state["start"])
        start = torch.where(view.fresh, first, start)
        promising = masked & (candidates.confidence >= self.low)
        last = torch.where(promising, view.columns, start[:, None]).amax(1, keepdim=True)
        past = view.state["notes"].masked_fill(begins[:, None], torch.nan)
        notes = torch.cat([past[:, 1:], last + 1.0], 1)
        # Not a number, and so never below it, as long as notes are missing.
        still = notes.var(1, correction=0) < self.variance
        found = torch.where(still, notes[:, -1], notes.nanmean(1).floor()).long()
        before = torch.where(begins, -1, view.state["end"])
        end = torch.where(before >= 0, before, torch.where(still, found, -1))
        late = slow_steps >= self.most_slow
        end = torch.where(late & (end < 0), found, end)
        done = late | ((end >= 0) & self.early)
        return {
            "start": torch.where(fast, view.state["start"], start),
            "end": torch.where(fast, view.state["end"], end),
            "fast": fast | done,
            "slow_steps": slow_steps,
            "notes": notes,
        }
