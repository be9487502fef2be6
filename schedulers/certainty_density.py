"""Certainty density (d2Cache): confidence counts for more near what is already decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.options import Probability, Width
from dllm.schedulers.base import Candidates, Decision, Needs, Scheduler, View, best


@dataclass(frozen=True)
class CertaintyDensity(Scheduler):
    """Commits columns whose confidence times the share of decoded text nearby is >= `threshold`.

    The share is weighted by a Gaussian of width `sigma` columns. All that precedes the slots counts
    as decoded, and what follows them as the last slot is. Without a threshold one column goes a
    step, near the text that is there.
    """

    threshold: Probability | None = None  # of the product; None: the best column alone
    sigma: Width = 10.0  # columns

    constant_needs = Needs(whole_row=True)
    source = "arXiv 2509.23094; Kamichanw/d2Cache src/generation/vanilla.py"
    statistic = "confidence, distance to decoded columns"

    def select(self, candidates: Candidates, view: View) -> Decision:
        masked = view.masked & view.block
        score = candidates.confidence * self._density(view, candidates.confidence.dtype)
        commit = best(score, masked)
        if self.threshold is not None:
            commit = commit | ((score >= self.threshold) & masked)
        return Decision(commit)

    def _density(self, view: View, dtype: torch.dtype) -> Tensor:
        """Returns the weighted share of decoded columns around each, (B, W) in [0, 1]."""
        slots = (view.columns < view.length[:, None]) & (view.offset >= 0)
        decoded = slots & (view.tokens != view.layout.mask_token_id)
        num_slots = view.length - view.prompt_length
        return decoded_share(decoded, view.offset, num_slots, self.sigma, dtype)


def decoded_share(
    decoded: Tensor, offset: Tensor, num_slots: Tensor, sigma: float, dtype: torch.dtype
) -> Tensor:
    """Returns the share of decoded columns around each, weighted by a Gaussian, (B, W) in [0, 1].

    `decoded` (B, W) bool are slots, at `offset` (B, W) int64 after the prompt, of `num_slots` (B,)
    in all; `sigma` is in columns. All that precedes the slots counts as decoded, and what follows
    them as the last slot is (arXiv 2509.23094; Kamichanw/d2Cache src/utils/common.py).
    """
    width, device = decoded.shape[1], decoded.device
    reach = width + math.ceil(8 * sigma)  # what is further away weighs less than 1e-14
    distance = torch.arange(reach, device=device, dtype=dtype)
    weight = torch.exp(-0.5 * (distance / sigma).square())
    beyond = weight.flip(0).cumsum(0).flip(0)  # of all columns that are so far away or further
    columns = torch.arange(width, device=device)
    nearby = decoded.to(dtype) @ weight[(columns[:, None] - columns).abs()]
    after = num_slots[:, None] - offset  # distance to the end
    before = beyond[(offset + 1).clamp(0, width)]
    behind = beyond[after.clamp(0, width)]
    ended = (decoded & (after == 1)).any(1, keepdim=True)
    return (nearby + before + torch.where(ended, behind, 0)) / (2 * beyond[0] - 1)
