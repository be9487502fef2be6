"""Saber: a threshold that follows what was committed, and tokens that lost support taken back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.options import Count
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, Setup, State, View, rank


@dataclass(frozen=True)
class Saber(Scheduler):
    """Commits columns surer than the mean of those committed so far, `least` of them at least.

    Then tokens of the block become masks again, half of `least` or an eighth of what was committed,
    but fewer than that: those whose column lost most confidence since the step before. That is the
    confidence in whatever the column would hold now, not in the token that it holds. A token can
    go in the step that commits it, and it is never written then. What was taken back still counts
    in the mean. So a block holds a token more after each step, if not many.

    Only the current block is revised, as in the authors' runs, which have one block. Where fewer
    than `least` masks are left, their code writes some other column besides; this does not.
    """

    least: Count = 2  # tokens a step, before some of them go again

    can_revise = True
    never_waits = True
    constant_needs = Needs(whole_block=True)
    source = "arXiv 2510.18165; zhaoyMa/Saber decoding.py:generate_with_saber"
    statistic = "confidence; its change since the step before, of the block's tokens too"
    published = (
        "1.9 % more passes at 3.5 times the speed of one token a step, LLaDA-8B, mean of code "
        "benchmarks (authors' abstract)"
    )

    def revision_limit(self, block_length: int) -> int:
        return block_length  # a step leaves one token more than it found, at least

    def start(self, setup: Setup) -> State:
        size = (setup.num_rows, setup.width)
        none = torch.zeros(size, dtype=setup.dtype, device=setup.device)
        row = torch.zeros(setup.num_rows, dtype=setup.dtype, device=setup.device)
        # `surest`: of each column when it was last committed, -1 never; sums of blocks before.
        return {"last": none, "surest": none - 1, "sum": row, "count": row}

    def select(self, candidates: Candidates, view: View) -> Decision:
        sure, masked = candidates.confidence, view.masked & view.block
        state = self._entered(view)
        commit = self._chosen(sure, masked, state)
        read = view.known & view.block
        again = self._doubted(sure - state["last"], commit, view)
        surest = torch.where(commit, sure, state["surest"])
        state["last"] = torch.where(read, sure, state["last"])
        state["surest"] = surest
        return Decision(commit & ~again, remask=again & ~commit, state=state)

    def _entered(self, view: View) -> dict[str, Tensor]:
        """Returns the state; where a block begins, its columns are new and the old ones summed."""
        last, surest, total, count = (view.state[n] for n in ("last", "surest", "sum", "count"))
        new, held = view.fresh, surest >= 0
        total = torch.where(new, total + surest.clamp(min=0).sum(1), total)
        count = torch.where(new, count + held.sum(1), count)
        last = last.masked_fill(new[:, None], 0)
        surest = surest.masked_fill(new[:, None], -1)
        return {"last": last, "surest": surest, "sum": total, "count": count}

    def _chosen(self, sure: Tensor, masked: Tensor, state: State) -> Tensor:
        """Returns the masks to commit, (B, W) bool: those above the mean, or the surest ones."""
        held = state["surest"] >= 0
        total = state["sum"] + state["surest"].clamp(min=0).sum(1)
        count = state["count"] + held.sum(1)
        mean = torch.where(count > 0, total / count.clamp(min=1), 1)  # 1: before the first one
        above = masked & (sure > mean[:, None])
        surest = rank(sure, masked) < self.least
        return torch.where((above.sum(1) >= self.least)[:, None], above, surest & masked)

    def _doubted(self, change: Tensor, commit: Tensor, view: View) -> Tensor:
        """Returns the tokens that become masks again, of those that this step commits too."""
        chosen = commit.sum(1)
        number = ((chosen + 7) // 8).clamp(min=self.least // 2).minimum(chosen - 1)
        left = (view.left & ~commit).any(1)
        pool = (commit | view.committed) & view.block & view.known
        return pool & (rank(-change, pool) < torch.where(left, number, 0)[:, None])
