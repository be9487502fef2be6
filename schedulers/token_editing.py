"""Token editing (LLaDA2.1): masks become tokens, and tokens become better ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dllm.options import Count, CountOrNone, Probability, Range
from dllm.schedulers.base import Candidates, Decision, Scheduler, Setup, State, View, rank


@dataclass(frozen=True)
class TokenEditing(Scheduler):
    """Commits masks > `threshold` and replaces tokens by proposals > `editing_threshold`.

    For models trained to correct tokens as well as masks (LLaDA2.1); others do not improve what
    stands there. Edits happen in every forward, and in up to `post_steps` more once the block is
    full, until one changes nothing: two tokens may take turns for that long.

    `steps` is the schedule of a block: at least its share of the block is committed in a forward,
    and a block that took all of them gets no forwards for edits alone (diffusers). Without it one
    mask goes at least (`num_to_transfer`), and a full block is always looked over (sglang).

    With `at_eos="stop"` a row is over once all before its end token is there, edited or not; with
    "block" its last block is edited like any other.
    """

    # A probability, compared with >; above 1, as in recordings of the authors' code: none passes.
    threshold: Annotated[float, Range(0, 2)] = 0.7
    editing_threshold: Probability | None = 0.5  # the same; None: nothing is edited
    post_steps: CountOrNone = 16  # forwards of a full block
    steps: Count | None = None  # forwards of a block; None: `num_to_transfer` tokens in each
    num_to_transfer: Count = 1  # masks that go at least in a forward, where `steps` is None

    source = (
        "arXiv 2602.08676; huggingface/diffusers scheduling_block_refinement.py, "
        "sgl-project/sglang JointThreshold"
    )
    statistic = "confidence, of masks and of tokens that are there"
    published = (
        "LLaDA2.1-mini, average score | tokens a forward: speed 62.07 | 5.34, quality "
        "63.90 | 3.12, LLaDA2.0-mini 63.39 | 2.60 (arXiv 2602.08676)"
    )
    # The report names the two modes and prints no thresholds; these are two engines' defaults.
    presets = {
        "speed": {"threshold": 0.5, "editing_threshold": 0.0},  # sglang
        "quality": {"threshold": 0.7, "editing_threshold": 0.5},  # diffusers
    }

    def __post_init__(self) -> None:
        if self.steps is not None and self.num_to_transfer > 1:
            raise ValueError(
                f"steps={self.steps} and num_to_transfer={self.num_to_transfer} both say how many "
                "tokens a forward commits: leave one of them out"
            )

    @property
    def can_revise(self) -> bool:
        return self.editing_threshold is not None

    def revision_limit(self, block_length: int) -> int:
        # A forward of a block with masks commits one at least, an edit opens none, and a full
        # block has `post_steps` forwards.
        return block_length + self.post_steps

    def start(self, setup: Setup) -> State:
        return {"post": torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        passed = (candidates.confidence > self.threshold) & masked
        quota = self._quota(view)[:, None]
        scheduled = (rank(candidates.confidence, masked) < quota) & masked
        commit = torch.where(passed.sum(1, keepdim=True) < quota, scheduled, passed)
        if self.editing_threshold is None:
            return Decision(commit)
        sure = candidates.confidence > self.editing_threshold
        edit = view.committed & view.block & sure & (candidates.token != view.tokens)
        had_masks = masked.any(1)
        post = torch.where(had_masks, 0, view.state["post"] + 1)
        full = ~(masked & ~commit).any(1)
        goes_on = torch.where(had_masks, self._in_time(view), edit.any(1))
        hold = full & goes_on & (post < self.post_steps)
        return Decision(commit, edit=edit, hold=hold, state={"post": post})

    def _quota(self, view: View) -> Tensor:
        """Returns how many masks go at least in this forward, (B,) int64."""
        if self.steps is None:
            return torch.full_like(view.block_step, self.num_to_transfer)
        share, rest = divmod(view.layout.block_length, self.steps)
        return (share + (view.block_step < rest).long()).clamp(min=1)

    def _in_time(self, view: View) -> Tensor:
        """Returns whether the block was filled before its last scheduled forward, (B,) bool."""
        if self.steps is None:
            return torch.ones_like(view.block_step, dtype=torch.bool)
        return view.block_step + 1 < self.steps
