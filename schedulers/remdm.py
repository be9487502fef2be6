"""Re-masking (ReMDM): when a block is nearly done, its least sure tokens get a second chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dllm.options import Count, CountOrNone, Range
from dllm.schedulers.base import Candidates, Decision, Scheduler, Setup, State, View, rank


@dataclass(frozen=True)
class ReMasking(Scheduler):
    """Commits `per_step` tokens; from `begin` of the block on, masks the least sure ones again.

    Each of `loops` steps then masks the `remask` tokens that were least sure when they were
    committed, and the next step commits as many, so the number of masks stands still for that
    long. The authors sample tokens (temperature 1): without chance, a step that opens just what
    it committed changes nothing, and nor do those after it.

    `begin` is a part of the block's columns. In the authors' code it is a step number, which is
    the same at one token a step.
    """

    remask: CountOrNone = 1  # tokens
    loops: CountOrNone | None = None  # steps; None: as many as the block has columns
    begin: Annotated[float, Range(0, 1, above=True)] = 0.875  # part of the block that holds tokens
    per_step: Count = 1  # tokens

    source = "arXiv 2503.00307; guanghanwang/ReMDM-LLaDA eval_llada.py:llada_remdm_sample"
    statistic = "confidence at commit"
    presets = {
        "countdown": {"remask": 1},
        "truthfulqa": {"remask": 4},
    }

    @property
    def can_revise(self) -> bool:
        return self.remask > 0

    @property
    def may_skip(self) -> bool:
        return self.remask > 0  # what a step commits may be the least sure: it stays a mask

    def revision_limit(self, block_length: int) -> int:
        # A step follows one that opened tokens, or it does not. The first kind commits what was
        # opened, and there are at most `loops` of it. So the second kind commits what was masked
        # when the block began, one token a step at least: there are at most `block_length` of it.
        return block_length + (block_length if self.loops is None else self.loops)

    def start(self, setup: Setup) -> State:
        none = torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)
        size = (setup.num_rows, setup.width)
        sure = torch.full(size, torch.inf, dtype=setup.dtype, device=setup.device)
        return {"opened": none, "loops": none, "sure": sure}

    def select(self, candidates: Candidates, view: View) -> Decision:
        opened = torch.where(view.fresh, 0, view.state["opened"])
        done = torch.where(view.fresh, 0, view.state["loops"])
        masked = view.masked & view.block
        quota = torch.where(opened > 0, opened, self.per_step)
        commit = (rank(candidates.confidence, masked) < quota[:, None]) & masked
        sure = view.state["sure"].masked_fill(view.fresh[:, None], torch.inf)
        sure = torch.where(commit, candidates.confidence, sure)
        again = self._again(view, commit, sure) & (done < self._loops(view))[:, None]
        opened = again.sum(1)
        # What this step committed is masked again by not committing it.
        return Decision(
            commit & ~again,
            remask=again & ~commit,
            state={"opened": opened, "loops": done + (opened > 0), "sure": sure},
        )

    def _again(self, view: View, commit: Tensor, sure: Tensor) -> Tensor:
        """Returns the block's least sure tokens once it is nearly full, (B, W) bool."""
        size = (view.block & ~view.fixed).sum(1)
        held = (view.committed & view.block) | commit
        late = held.sum(1) >= self.begin * size
        # Infinite: not this method's own, and not to be opened.
        own = held & sure.isfinite() & (view.known | commit)
        return own & (rank(-sure, own) < self.remask) & late[:, None]

    def _loops(self, view: View) -> int:
        return view.layout.block_length if self.loops is None else self.loops
