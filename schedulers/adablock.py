"""Adaptive blocks (AdaBlock): a block ends where the model expects a sentence or line to end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.candidates import Candidates
from dllm.schedulers.base import Decision, Needs, Setup
from dllm.schedulers.view import State, View
from dllm.schedulers.wrapper import Wrapper


@dataclass(frozen=True)
class AdaBlock(Wrapper):
    """Ends each block after the surest delimiter that is proposed, if >= `delimiter_threshold`.

    Decided in the first forward of a block, over at most `reach` of the generated region; that
    forward commits as well. `delimiters` are token ids, such as those of a line break and a full
    stop; without any, and where none is sure, blocks have their usual length. `inner` decides what
    is committed in the block.
    """

    delimiters: tuple[int, ...] = ()
    delimiter_threshold: float = 0.3  # probability, compared with >=
    reach: float = 0.25

    source: ClassVar[str] = "arXiv 2509.26432; lgxi24/AdaBlock-dLLM"
    statistic: ClassVar[str] = "confidence; probability of delimiters"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llada": {"delimiters": (198,), "delimiter_threshold": 0.3},
        "dream": {"delimiters": (198,), "delimiter_threshold": 0.5},
    }

    def __post_init__(self) -> None:
        if not 0 < self.reach <= 1:
            raise ValueError(f"reach={self.reach} must be in (0, 1], a part of the region")

    def own_needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(window=max(block_length, int(self.reach * num_slots)))

    def start(self, setup: Setup) -> State:
        return self.inner.start(setup)  # it sees the whole window: blocks differ in length

    def select(self, candidates: Candidates, view: View) -> Decision:
        start = view.columns.gather(1, view.first_of_block()[:, None])
        nominal = start + view.block.sum(1, keepdim=True)
        chosen = self._end(candidates, view, start, nominal)
        end = torch.where((view.block_step == 0)[:, None], chosen, nominal)
        block = (view.columns >= start) & (view.columns < end)
        decision = self.inner.decide(
            candidates, replace(view, block=block, masked=view.masked & block)
        )
        return replace(decision, block_end=end[:, 0])

    def _end(self, candidates: Candidates, view: View, start: Tensor, nominal: Tensor) -> Tensor:
        """Returns the column after the surest delimiter, else the usual end, (B, 1) int64."""
        limit = start + (self.reach * view.num_slots[:, None]).long()
        delimiter = torch.zeros_like(view.masked)
        for token in self.delimiters:  # a few, known to the host
            delimiter = delimiter | (candidates.token == token)
        # A block without masks would never be decoded: it has to reach beyond the first one.
        first = torch.where(view.masked, view.columns, limit).amin(1, keepdim=True)
        place = view.known & (view.columns >= first) & (view.columns < limit)
        sure = candidates.confidence.masked_fill(~(delimiter & place), -1)
        best, index = sure.max(1, keepdim=True)
        return torch.where(
            best >= self.delimiter_threshold, view.columns.gather(1, index) + 1, nominal
        )
