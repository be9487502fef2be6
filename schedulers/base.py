"""The contract of every scheduler: which masked columns to commit after a forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.noise import Noise
from dllm.sampling import ConfidenceSource


@dataclass(frozen=True)
class View:
    """What a scheduler may look at besides the candidates."""

    columns: Tensor  # (B, W) int64 canvas columns of the window
    tokens: Tensor  # (B, W) int64 what they hold
    masked: Tensor  # (B, W) bool: may be committed now
    step: Tensor  # (B,) int64 forwards this row took part in before
    block_step: Tensor  # (B,) int64 schedule steps of this block that are over
    block_masks: Tensor  # (B,) int64 masks of the block when it began
    num_blocks: Tensor  # (B,) int64
    noise: Noise

    def uniform(self) -> Tensor:
        """Returns one uniform number a column, (B, W) float32, seeded per row."""
        return self.noise.columns(self.columns, self.step, self.masked)


@dataclass(frozen=True)
class Decision:
    """What to write after this step."""

    commit: Tensor  # (B, W) bool
    tokens: Tensor | None = None  # (B, W) int64; None: the candidates' tokens
    num_steps: Tensor | None = None  # (B,) int64 schedule steps that this one stands for; None: 1


@dataclass(frozen=True)
class Scheduler(ABC):
    """Chooses the columns to commit; rows are decided independently and nothing is written.

    A subclass implements `select` on tensors without host synchronisation. `decide` holds the
    contract: only masked columns are committed, and at least one in every row that has any.
    """

    source: ClassVar[str]  # paper and code that the rule is from
    confidence: ClassVar[ConfidenceSource] = "raw"  # distribution that its authors read

    @property
    def may_skip(self) -> bool:
        """Whether a step may commit nothing in a row that has masks."""
        return False

    @abstractmethod
    def select(self, candidates: Candidates, view: View) -> Decision:
        """Returns which columns to commit; columns that are not masked are ignored."""

    def score(self, candidates: Candidates) -> Tensor:
        """Returns what ranks the columns, (B, W), larger is committed sooner."""
        return candidates.confidence

    def decide(self, candidates: Candidates, view: View) -> Decision:
        """Returns the decision of `select` within the contract of every scheduler."""
        decision = self.select(candidates, view)
        commit = decision.commit & view.masked
        if not self.may_skip:
            best = (rank(self.score(candidates), view.masked) == 0) & view.masked
            commit = torch.where(commit.any(-1, keepdim=True), commit, best)
        return replace(decision, commit=commit)

    def check(self, num_blocks: int, block_length: int) -> None:
        """Raises ValueError when the options do not fit rows of that many blocks."""

    def summary(self) -> dict[str, Any]:
        """Returns the name and options as a mapping that builds the same scheduler again."""
        return {"name": type(self).__module__.rpartition(".")[2], **vars(self)}
