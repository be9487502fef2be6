"""What the passes so far have shown of each column, for caches that go by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Kept on the canvas by the loop where plans ask for attention maps; nobody else pays."""

    tokens: Tensor  # (B, C) int64 what each column held when it was last fed
    confidence: Tensor  # (B, C) float32 of the token that was last proposed there, 0 before that
    importance: Tensor  # (B, K) float32 attention that each column got in the last pass

    def after(self, fed: Tensor, tokens: Tensor, importance: Tensor) -> Seen:
        """Returns what is known after a pass that fed the columns `fed` (B, C) bool."""
        held = torch.where(fed, tokens, self.tokens)
        return replace(self, tokens=held, importance=importance)

    def judged(self, columns: Tensor, confidence: Tensor, known: Tensor | None = None) -> Seen:
        """Returns the same with the confidence (B, n) of some columns (B, n), where known."""
        confidence = confidence.to(self.confidence.dtype).nan_to_num()
        if known is not None:
            confidence = torch.where(known, confidence, self.confidence.gather(1, columns))
        return replace(self, confidence=self.confidence.scatter(1, columns, confidence))


def nothing_seen(tokens: Tensor) -> Seen:
    """Returns the state before the first pass over a canvas (B, C)."""
    blank = torch.zeros_like(tokens, dtype=torch.float32)
    return Seen(tokens.clone(), blank, blank)


def rollout(maps: Sequence[Tensor], columns: Tensor, real: Tensor) -> Tensor:
    """Returns how much of the last layer's states comes from each column, (B, K) float32.

    `maps` are the attention weights (B, Q, K) of the fed columns (B, Q) int64 in each layer;
    `real` (B, K) bool are the columns that count. This is the column sum of attention rollout
    (arXiv 2005.00928): the product over layers of A/2 + I/2, with the identity in rows that were
    not fed. Taken from the last layer down it needs no matrix of K x K, but all the maps at once.
    """
    flow = real.float()
    inside = columns < real.shape[1]
    at = columns.clamp(max=real.shape[1] - 1)
    for attention in reversed(maps):
        share = torch.where(inside, flow.gather(1, at), 0) / 2
        weights = attention.to(flow.device, flow.dtype)[..., : real.shape[1]]
        flow = flow.scatter_add(1, at, -share) + (share[:, None] @ weights)[:, 0]
    return flow
