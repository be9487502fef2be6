"""A trained filter says which predictions are final (Learn2PD)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dllm.learn2pd import Filter, read_filter
from dllm.options import Count, Probability
from dllm.schedulers.base import Candidates, Decision, ModelSpec, Needs, Scheduler, View, rank


@dataclass(frozen=True)
class Learn2PD(Scheduler):
    """Commits what a trained filter accepts, and the quota of the most confident columns.

    The filter reads the confidences of the whole block, those of committed columns included.
    `steps` sets the quota, which is one column a step without it.
    """

    filter: str | None = "tiny"  # a file of `dllm train-filter`; None: the quota alone
    threshold: Probability = 0.96  # probability that a prediction is final, compared with >
    steps: Count | None = None  # in total over all blocks; None: one token a step
    foreign: bool = False  # take a filter of another model

    constant_needs = Needs(whole_block=True)
    source = (
        "arXiv 2509.25188; ims-kdks/Learning-to-Parallel-Decoding "
        "llada/generate.py:generate_learn2parallel"
    )
    statistic = "confidences of the whole block, through a trained filter"
    published = (
        "LLaDA: up to 22.58x as fast with end-of-text prediction, accuracy kept; 57.51x with a "
        "cache (abstract of arXiv 2509.25188)"
    )

    def __post_init__(self) -> None:
        if self.filter is not None:
            _ = self._network  # a missing or damaged file is an error now, not in the loop

    def check(self, num_blocks: int, block_length: int) -> None:
        if self.steps is not None and self.steps % num_blocks:
            raise ValueError(
                f"steps={self.steps} is the total and must be a multiple of the {num_blocks} "
                f"blocks; steps={max(self.steps // num_blocks, 1) * num_blocks} fits"
            )
        if self.filter is not None:
            self._network.check_block(block_length)

    def check_model(self, spec: ModelSpec) -> None:
        if self.filter is not None and not self.foreign:
            self._network.check_model(spec)

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        chosen = rank(candidates.confidence, masked) < self._quota(view)[:, None]
        return Decision((chosen | self.accepted(candidates, view)) & masked)

    def accepted(self, candidates: Candidates, view: View) -> Tensor:
        """Returns the columns (B, W) bool that the filter accepts; the row's end is padding."""
        if self.filter is None:
            return torch.zeros_like(view.masked)
        padding = view.columns >= view.length[:, None]
        confidence = candidates.confidence.float().masked_fill(padding, 0)
        logits = self._network.on(confidence.device)(confidence)
        return logits.sigmoid() > self.threshold

    def _quota(self, view: View) -> Tensor:
        """Returns how many columns each row commits in any case, (B,) int64.

        Read off the masks that the block began with: cutting a row off does not slow it down.
        """
        if self.steps is None:
            return torch.ones_like(view.block_step)
        steps = self.steps // view.num_blocks
        return view.block_masks // steps + (view.block_step < view.block_masks % steps)

    @cached_property
    def _network(self) -> Filter:
        assert self.filter is not None
        return read_filter(self.filter)
