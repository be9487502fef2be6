"""Which keys a layer goes on seeing: those that the block's queries ask for most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.state.candidates import rank


@dataclass(frozen=True)
class Retention:
    """An order to every layer: rank some keys by what the block's queries make of them.

    The importance of a key is its product with the mean query, averaged over heads; neighbours
    share the larger value, so that what is kept comes in runs (arXiv 2508.02558).
    """

    queries: Tensor  # (B, Q) bool: fed columns whose mean query ranks
    candidates: Tensor  # (B, K) bool: keys that are ranked; all others stay visible
    count: Tensor  # (B,) int64 how many of them stay
    kernel: int  # candidates that share their largest importance, odd

    def choose(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Returns which keys stay visible, (B, K) bool.

        `queries` (B, Q, H, D) and `keys` (B, K, Hkv, D) are those of one layer after RoPE.
        """
        # Shadows are fed behind the canvas columns: they do not ask, and are not ranked.
        candidates = _widened(self.candidates, keys.shape[1]).to(keys.device)
        dtype = torch.promote_types(queries.dtype, torch.float32)
        asking = _widened(self.queries, queries.shape[1]).to(queries.device)[..., None, None]
        mean = torch.where(asking, queries, 0).to(dtype).sum(1) / asking.sum(1).clamp(min=1)
        groups = mean.unflatten(1, (keys.shape[2], -1)).mean(2) / keys.shape[2]
        importance = torch.einsum("bhd,bkhd->bk", groups, keys.to(dtype))
        # Candidates on either side of the block become neighbours.
        order = (~candidates).to(torch.uint8).sort(dim=1, stable=True).indices
        among = candidates.gather(1, order)
        packed = importance.gather(1, order).masked_fill(~among, -torch.inf)
        pooled = F.max_pool1d(packed[:, None], self.kernel, 1, self.kernel // 2)[:, 0]
        chosen = (rank(pooled, among) < self.count.to(keys.device)[:, None]) & among
        return torch.zeros_like(candidates).scatter(1, order, chosen) | ~candidates

    def of_rows(self, rows: Tensor) -> Retention:
        """Returns the order for some rows (n,) int64."""
        queries, candidates = self.queries[rows], self.candidates[rows]
        return Retention(queries, candidates, self.count[rows], self.kernel)


def _widened(chosen: Tensor, width: int) -> Tensor:
    """Returns (B, width) bool, False where `chosen` (B, n) bool ends."""
    return F.pad(chosen, (0, width - chosen.shape[1]))
