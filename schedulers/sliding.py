"""Sliding blocks (DSB): each token that is committed moves the block's end on by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.options import Count
from dllm.schedulers.base import Candidates, Decision, Needs, View
from dllm.schedulers.wrapper import Bounded, Wrapper


@dataclass(frozen=True)
class Sliding(Bounded):
    """Lets `inner` commit before an end that stands `block_length` masks, at least, from the start.

    The end is `block_length` columns behind the first slot, and one more for each slot that is
    filled, so that many masks are always in reach, wherever they are. `most` keeps it within so
    many columns of the first mask (the authors' constant mode; without it, greedy). To `inner` all
    of that is one block, from the first slot on.

    Text that is given among the slots counts as filled. The authors' cache is `dsb`.
    """

    most: Count | None = None  # columns from the first mask to the end; None: no limit

    source = "arXiv 2602.05992; lizhuo008/DSB llada/generate.py:generate_dsb"
    statistic = "inner's"
    published = (
        "GSM8K 82.0 % at 99.6 tokens a second, LLaDA-8B-Instruct on an H200 (a summary of the "
        "paper; blocks of 32, threshold 0.9)"
    )
    presets = {
        "greedy": {"most": None},
        "constant": {"most": 32},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.inner
        while isinstance(inner, Wrapper):
            inner = inner.inner
        if getattr(inner, "steps", None) is not None:
            raise ValueError(
                f"sliding has one block, whose end moves: inner={inner.summary()['name']!r} cannot "
                "share steps among blocks; leave steps out, or give a number of tokens a step"
            )

    def own_needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(window=num_slots + block_length)  # a first block may begin before the slots

    def select(self, candidates: Candidates, view: View) -> Decision:
        start = view.columns.gather(1, view.first_of_block()[:, None])
        left = (view.tokens == view.layout.mask_token_id) & ~view.fixed
        block = (view.columns >= start) & (view.columns < self._end(left, view))
        decision = self.inner.decide(candidates, self.within(view, block))
        left = left & ~decision.commit
        if decision.remask is not None:
            left = left | decision.remask
        return replace(decision, block_end=self._end(left, view)[:, 0])

    def _end(self, left: Tensor, view: View) -> Tensor:
        """Returns where the block ends while masks `left` (B, W) remain, (B, 1) int64."""
        first, length = view.prompt_length[:, None], view.length[:, None]
        slot = (view.offset >= 0) & (view.columns < length)
        before = (view.columns[:, :1] - first).clamp(
            min=0
        )  # given text in front of the first block
        filled = before + (slot & ~left).sum(1, keepdim=True)
        end = (first + view.layout.block_length + filled).minimum(length)
        if self.most is None:
            return end
        open_ = torch.where(left, view.columns, length).amin(1, keepdim=True)
        return end.minimum(open_ + self.most)
