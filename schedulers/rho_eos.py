"""rho-EOS: the gap grows or shrinks with the share of masks at which the model expects an end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Count, Probability
from dllm.schedulers.base import Candidates, Decision, Setup, State, View
from dllm.schedulers.gap import (
    Growing,
    confidence_in_end,
    end_token,
    expects_end,
    rewritten,
    with_masks,
)

_INTERVAL = 0.1  # of the density, for which the change doubles, or grows by a step
_MOST_STEPS = 8  # at a time


@dataclass(frozen=True)
class RhoEOS(Growing):
    """Adds masks where fewer than `low` of them expect an end, takes slots where more than `high`.

    Decided in every forward, after its commits: the further beyond, the more steps of `step`
    columns, 1, 2, 4, 8 for each tenth (`pace`). Masks come in front of the first end token, or at
    the end; columns go at the end, with what they hold. Nothing changes any more once the gap has
    had its full length, nor after `changes` forwards.

    `signal="confidence"` is DAEDAL's number, which an earlier version of the authors' code
    compared. Masks that come in front of the span are decoded; their code leaves them.
    """

    low: Probability = 0.4  # compared with <
    high: Probability = 0.6  # compared with >
    pace: Literal["exp", "linear", "const"] = "exp"
    signal: Literal["density", "confidence"] = "density"
    changes: Count = 64  # forwards in which the length may change

    source = "arXiv 2601.22527; yjyddq/rho-EOS models/LLaDA_rho_EOS.py:generate"
    statistic = "confidence; where an end is expected"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not be above high={self.high}")

    def revision_limit(self, block_length: int) -> int:
        return self.changes + block_length + 1  # after the changes each forward fills a slot

    def start(self, setup: Setup) -> State:
        none = torch.zeros(setup.num_rows, dtype=torch.int64, device=setup.device)
        return {"at": none, "full": none.bool()}

    def select(self, candidates: Candidates, view: View) -> Decision:
        assert view.gap is not None
        assert view.room is not None
        filled = torch.where(self.chosen(candidates, view), candidates.token, view.tokens)
        at = self.moved_on(filled, view.gap, view)
        full = view.state["full"] | (view.gap >= view.room)
        count = self._change(self._signal(candidates, view), full | (view.step >= self.changes))
        count = count.minimum(view.room - view.gap).maximum(-view.gap)
        before = self._place(filled, view)
        at = torch.where(count > 0, at.minimum(before), at).minimum(view.gap + count)
        after = with_masks(filled, before, count, view)
        return rewritten(after, view.gap + count, {"at": at, "full": full}, view)

    def _signal(self, candidates: Candidates, view: View) -> Tensor:
        """Returns what is compared, (B,) float32."""
        if self.signal == "confidence":
            return confidence_in_end(candidates, view).float()
        masks = view.masked.sum(1)
        ends = (expects_end(candidates, view) & view.masked).sum(1)
        return ends.float() / masks.clamp(min=1).float()

    def _change(self, signal: Tensor, frozen: Tensor) -> Tensor:
        """Returns how many columns come, or go if negative, (B,) int64."""
        fewer, more = signal > self.high, signal < self.low
        beyond = torch.where(more, self.low - signal, signal - self.high).clamp(min=0)
        tenths = ((beyond + 1e-12) / _INTERVAL).ceil().long().clamp(min=1)
        if self.pace == "const":
            tenths = torch.ones_like(tenths)
        steps = 2 ** (tenths - 1) if self.pace == "exp" else tenths
        count = steps.clamp(max=_MOST_STEPS) * self.step
        return (count * (more.long() - fewer.long())).masked_fill(frozen, 0)

    def _place(self, filled: Tensor, view: View) -> Tensor:
        """Returns the slot in front of which masks come, (B,) int64."""
        assert view.gap is not None
        slot, gap = view.offset, view.gap[:, None]
        ended = (filled == end_token(view)) & (slot >= 0) & (slot < gap)
        return torch.where(ended, slot, gap).amin(1)
