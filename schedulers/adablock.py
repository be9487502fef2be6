"""Adaptive blocks (AdaBlock): a block ends where the model expects a sentence or line to end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from dllm.options import Probability, Range, TokenId
from dllm.schedulers.base import Candidates, Decision, Needs, View, best
from dllm.schedulers.wrapper import Bounded


@dataclass(frozen=True)
class AdaBlock(Bounded):
    """Ends each block after the surest delimiter that is proposed, if >= `delimiter_threshold`.

    Decided in the first forward of a block, over at most `reach` of the generated region; that
    forward commits as well. `delimiters` are token ids, such as those of a line break and a full
    stop; without any, and where none is sure, blocks have their usual length. `inner` decides what
    is committed in the block; with `steps`, each block takes its share of the usual number of
    blocks.
    """

    delimiters: tuple[TokenId, ...] = ()  # token ids
    delimiter_threshold: Probability = 0.3  # probability, compared with >=
    reach: Annotated[float, Range(0, 1, above=True)] = (
        0.25  # part of the row's slots that a block may span
    )

    bounded_by = "reach"
    source = (
        "arXiv 2509.26432; lgxi24/AdaBlock-dLLM llada/generate_adablock.py:compute_block_length"
    )
    statistic = "inner's; probability of delimiters"
    published = (
        "up to 5.3 points more accurate than fixed blocks at like throughput, with a dual cache "
        "(authors' README)"
    )
    presets = {
        "llada": {"delimiters": (198,), "delimiter_threshold": 0.3},
        "dream": {"delimiters": (198,), "delimiter_threshold": 0.5},
    }

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        return {"delimiters": self.delimiters, **super().token_ids()}

    def own_needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(window=max(block_length, int(self.reach * num_slots)))

    def select(self, candidates: Candidates, view: View) -> Decision:
        start = view.columns.gather(1, view.first_of_block()[:, None])
        nominal = start + view.block.sum(1, keepdim=True)
        chosen = self._end(candidates, view, start, nominal)
        end = torch.where(view.fresh[:, None], chosen, nominal)
        block = (view.columns >= start) & (view.columns < end)
        decision = self.inner.decide(candidates, self.within(view, block))
        return replace(decision, block_end=end[:, 0])

    def _end(self, candidates: Candidates, view: View, start: Tensor, nominal: Tensor) -> Tensor:
        """Returns the column after the surest delimiter, else the usual end, (B, 1) int64."""
        delimiter = torch.zeros_like(view.masked)
        for token in self.delimiters:  # a few, known to the host
            delimiter = delimiter | (candidates.token == token)
        # float64, as the window's width on the host.
        limit = start + (self.reach * view.num_slots[:, None].double()).long()
        # Only at masks: a block without any would never be decoded.
        allowed = delimiter & view.masked & (view.columns < limit)
        sure = allowed & (candidates.confidence >= self.delimiter_threshold)
        surest = best(candidates.confidence, sure)
        after = torch.where(surest, view.columns + 1, 0).amax(1, keepdim=True)
        return torch.where(surest.any(1, keepdim=True), after, nominal)
