"""Info-Gain: of several columns that may be committed, the one that leaves the rest the surest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.options import Amount, Probability, Rows
from dllm.schedulers.base import (
    Candidates,
    Decision,
    Needs,
    Scheduler,
    Setup,
    State,
    Variants,
    View,
    best,
)

_TINY = 1e-10  # keeps the authors' logarithms finite


@dataclass(frozen=True)
class InfoGain(Scheduler):
    """Tries `candidates` columns of the block in one pass, one each, and commits the best of them.

    The first is the most confident one; the others are drawn by confidence / `position_temperature`
    plus Gumbel noise, and one that was drawn before is left out of the choice, not of the pass.
    The best has the least entropy: of the column itself before the pass, plus the mean of all
    masks that are left after it, as far as a cache has them computed. `objective="lookum"` leaves
    the first of the two out; the authors call it so, and it is not the LookUM of arXiv 2511.05563.

    A block whose masks all have `threshold` is filled at once, as is the last mask of a block
    without a comparison. The authors run another pass when a block begins, over a canvas whose
    logits they have; its decisions are the same, and here it is not run.
    """

    candidates: Rows = 8  # rows of a forward pass; 1: the most confident column, no look-ahead
    position_temperature: Amount = 0.2  # 0: the same
    threshold: Probability = 0.8  # probability, compared with >=; 0: no block is filled at once
    objective: Literal["info_gain", "lookum"] = "info_gain"

    source = "arXiv 2602.18176; yks23/Information-Gain-Sampler src/samplers/info_gain.py"
    statistic = "confidence; entropy of the column, and averaged over a variant's masks"
    published = (
        "2.9 to 11.6 points over other samplers on reasoning, LLaDA and Dream (arXiv 2602.18176; "
        "8 rows a forward, one token a step)"
    )
    presets = {
        "info_gain": {"candidates": 8, "position_temperature": 0.2, "threshold": 0.8},
        "lookum": {"objective": "lookum"},
    }

    @property
    def _num_variants(self) -> int:
        return self.candidates if self.position_temperature > 0 else 1

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(whole_row=True, num_variants=self._num_variants)

    def start(self, setup: Setup) -> State:
        shape = (setup.num_rows, self._num_variants)
        return {"cost": torch.zeros(shape, dtype=setup.dtype, device=setup.device)}

    def select(self, candidates: Candidates, view: View) -> Decision:
        block = view.masked & view.block
        sure = ~block | (candidates.confidence >= self.threshold)
        fills = sure.all(1) if self.threshold > 0 else torch.zeros_like(view.fresh)
        commit = block & fills[:, None]
        if self._num_variants == 1:
            return Decision(commit)
        chosen = self._chosen(candidates.confidence, block, view)
        cost = candidates.entropy.gather(1, chosen)
        needed = ~fills & (block.sum(1) > 1)
        again = chosen[:, :, None] == chosen[:, None]
        variants = Variants(
            columns=view.columns.gather(1, chosen),
            tokens=candidates.token.gather(1, chosen),
            confidence=candidates.confidence.gather(1, chosen),
            valid=~again.tril(-1).any(2),
            needed=needed,
        )
        return Decision(commit, variants=variants, state={"cost": cost})

    def appraise(self, candidates: Candidates, view: View, variants: Variants) -> Tensor:
        """Returns the negative entropy of the column and of what it leaves, in nats, (B, R)."""
        left = view.masked.sum(1) + _TINY
        nats = torch.where(view.masked, candidates.entropy, 0).sum(1) / left
        nats = nats.view(variants.columns.shape)
        if self.objective == "lookum":
            return -nats
        each = view.state["cost"].view(*variants.columns.shape, -1)  # alike for all variants
        return -each[:, 0] - nats

    def _chosen(self, confidence: Tensor, block: Tensor, view: View) -> Tensor:
        """Returns the columns of the window that the variants commit, (B, R) int64."""
        score, found = confidence / self.position_temperature, [best(confidence, block)]
        for number in range(1, self._num_variants):
            step = view.step * self._num_variants + number  # draws of its own
            uniform = view.noise.columns(view.columns, step, block)
            gumbel = -(-(uniform + _TINY).log() + _TINY).log()
            found.append(best(score + gumbel, block))
        return torch.stack(found, 1).int().argmax(2)
