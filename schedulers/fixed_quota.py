"""A fixed number of tokens a step (LLaDA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Count
from dllm.schedulers.base import Candidates, Decision, Scheduler, View, best, rank


@dataclass(frozen=True)
class FixedQuota(Scheduler):
    """Spreads the masks of each block evenly over its share of `steps`, larger quotas first.

    Or commits `tokens_per_step` each step, and what is left in a block's last one.

    `order` says which columns go first: those with the highest confidence or margin, the lowest
    entropy, or random ones; `sequential` is from left to right. `planned` is a random order too,
    but one that is drawn when the block begins, so that the cache `dkv_greedy` knows it.

    `schedule` says what the steps of a block divide. A first block that the prompt fills in part
    has fewer masks than a full one, and ends early where the schedule is made for a full one.
    """

    steps: Count | None = None  # in total over all blocks; None: one token a step
    order: Literal["confidence", "margin", "entropy", "random", "planned", "sequential"] = (
        "confidence"
    )
    tokens_per_step: Count | None = None  # the same number each step; None: what `steps` says
    schedule: Literal["masks", "block"] = "masks"  # block: a full one, whatever it holds (SDAR)

    source = (
        "arXiv 2502.09992; ML-GSAI/LLaDA generate.py (low_confidence, random); sequential, "
        "schedule: JetAstra/SDAR generate.py"
    )

    @property
    def plans_ahead(self) -> bool:
        return self.order == "planned"

    @property
    def never_waits(self) -> bool:
        return self.order != "planned"

    def __post_init__(self) -> None:
        if self.steps is not None and self.tokens_per_step is not None:
            raise ValueError(
                f"steps={self.steps} and tokens_per_step={self.tokens_per_step} both say how many "
                "tokens a step commits: leave one of them out"
            )

    def check(self, num_blocks: int, block_length: int) -> None:
        if self.steps is not None and self.steps % num_blocks:
            raise ValueError(
                f"steps={self.steps} is the total and must be a multiple of the {num_blocks} "
                f"blocks; steps={max(self.steps // num_blocks, 1) * num_blocks} fits"
            )

    def score(self, candidates: Candidates) -> Tensor:
        other = self.order in ("random", "planned", "sequential")
        return candidates.confidence if other else candidates.certainty(self.order)

    def select(self, candidates: Candidates, view: View) -> Decision:
        if self.order == "planned":
            return self._follow_plan(view)
        score = view.uniform() if self.order == "random" else self.score(candidates)
        if self.order == "sequential":
            score = -view.columns.to(score.dtype)
        if self.steps is None and self.tokens_per_step is None:
            return Decision(best(score, view.masked))
        quota = self._quota(view.left.sum(-1), view.block_step, view)
        return Decision(rank(score, view.masked) < quota[:, None])

    def _quota(self, masks: Tensor, block_step: Tensor, view: View) -> Tensor:
        """Returns how many of the block's masks (B,) a row commits at a step, (B,) int64."""
        if self.steps is None:
            return masks.clamp(max=self.tokens_per_step or 1)
        if self.schedule == "block":
            steps = self.steps // view.num_blocks
            return masks.minimum(share_of_block(steps, block_step, view.layout.block_length))
        return even_share(self.steps, masks, block_step, view.num_blocks)

    def _follow_plan(self, view: View) -> Decision:
        """Commits the next columns of the block's order, and announces those after them.

        A column that is due but has no logits, because one that was announced was cut off with
        the end of its row, is announced again.
        """
        left, start = view.left, torch.zeros_like(view.step)
        noise = view.noise.columns(view.columns, start, left)
        now = self._quota(left.sum(-1), view.block_step, view)
        commit = (rank(noise, left) < now[:, None]) & view.masked
        rest = left & ~commit
        then = self._quota(rest.sum(-1), view.block_step + 1, view)
        order = rank(noise, rest).argsort(1)[:, : self._most(view)]
        ahead = torch.arange(order.shape[1], device=now.device) < then[:, None]
        planned = torch.where(ahead & rest.gather(1, order), view.columns.gather(1, order), -1)
        return Decision(commit, planned=planned)

    def _most(self, view: View) -> int:
        """Returns the largest quota of any step, as the host knows it."""
        block = view.layout.block_length
        if self.steps is None:
            return min(self.tokens_per_step or 1, block)
        num_blocks = view.layout.num_slots // block + 2  # a first and a last one may be partial
        return min(block, -(-block // max(self.steps // num_blocks, 1)))


def even_share(steps: int, masks: Tensor, block_step: Tensor, num_blocks: Tensor) -> Tensor:
    """Returns how many of a block's masks a step commits, (B,) int64, larger shares first (LLaDA).

    All of rows (B,): the masks that are left, the block's steps that are over, the row's blocks.
    `steps` is the total of all blocks; in a block's last step, and after it, all are committed.
    """
    left = (steps // num_blocks - block_step).clamp(min=1)
    return (masks + left - 1) // left


def share_of_block(steps: Tensor, block_step: Tensor, block_length: int) -> Tensor:
    """Returns the columns that a step commits of a full block in so many steps, (B,) int64.

    All three of rows (B,), but the length. Larger shares come first; none is less than one.
    """
    steps = steps.clamp(min=1)
    share = block_length // steps
    return (share + (block_step < block_length - share * steps)).clamp(min=1)
