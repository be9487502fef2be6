"""Re-masking (ReMDM): when a block is nearly done, its least sure tokens get a second chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Scheduler, Setup
from dllm.schedulers.view import State, View


@dataclass(frozen=True)
class ReMasking(Scheduler):
    """Commits `per_step` tokens; from `begin` of the block on, masks the least sure ones again.

    Each of `loops` steps then masks the `remask` tokens that were least sure when they were
    committed, and the next step commits as many, so the number of masks stands still for that
    long. The authors sample tokens (temperature 1).
    """

    remask: int = 1  # tokens
    loops: int | None = None  # steps; None: as many as the block has columns
    begin: float = 0.875  # part of the block that holds tokens
    per_step: int = 1

    source: ClassVar[str] = "arXiv 2503.00307; guanghanwang/ReMDM-LLaDA"
    statistic: ClassVar[str] = "confidence at commit"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "countdown": {"remask": 1},
        "truthfulqa": {"remask": 4},
    }

    def __post_init__(self) -> None:
        if self.remask < 0 or self.per_step < 1:
            raise ValueError(
                f"remask={self.remask} must be 0 or more and per_step={self.per_step} at least 1"
            )

    @property
    def can_revise(self) -> bool:
        return True

    @property
    def may_skip(self) -> bool:
        return True  # what a step commits may be the least sure, and is open again at once

    def revision_limit(self, block_length: int) -> int:
        # Without the loops a block takes as many steps as it has masks; each loop adds one.
        return block_length + (block_length if self.loops is None else self.loops)

    def start(self, setup: Setup) -> State:
        none = torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)
        size = (setup.num_rows, setup.width)
        sure = torch.zeros(size, dtype=setup.dtype, device=setup.device)
        return {"opened": none, "loops": none, "sure": sure}

    def select(self, candidates: Candidates, view: View) -> Decision:
        fresh = view.block_step == 0
        opened = torch.where(fresh, 0, view.state["opened"])
        done = torch.where(fresh, 0, view.state["loops"])
        quota = torch.where(opened > 0, opened, self.per_step)
        commit = (rank(candidates.confidence, view.masked) < quota[:, None]) & view.masked
        sure = torch.where(commit, candidates.confidence, view.state["sure"])
        held = (view.committed & view.block) | commit
        loops = view.layout.block_length if self.loops is None else self.loops
        late = held.sum(1) >= self.begin * view.block_masks
        again = held & (rank(-sure, held) < self.remask) & (late & (done < loops))[:, None]
        # What this step committed is masked again by not committing it.
        opened = again.sum(1)
        return Decision(
            commit & ~again,
            remask=again & ~commit,
            state={"opened": opened, "loops": done + (opened > 0), "sure": sure},
        )
