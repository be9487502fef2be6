"""Drafted canvases: what each row will hold after its next schedule steps, if nothing changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.store import KVStore


@dataclass
class Drafts:
    """The canvases that a row is expected to pass through, the first of them the row itself.

    Only rows with more than one differ from the canvas. Everything a row has here depends on that
    row alone.
    """

    tokens: Tensor  # (B, R, C) int64
    count: Tensor  # (B,) int64 canvases that are to be run, 1 to R
    limit: Tensor  # (B,) int64 canvases that the next draft may have, 1 to R
    passes: Tensor  # (B,) int64 forwards that the row took part in
    taken: Tensor  # (B, R) int64 forwards after which 1, 2, ... R schedule steps were certain
    shared: bool = False  # all rows of the store hold what the first one of each row does

    @property
    def most(self) -> int:
        """R, the canvases of a row that one pass may run."""
        return self.tokens.shape[1]

    def variants(self, tokens: Tensor, count: int) -> Tensor:
        """Returns the first `count` canvases (B, count, C) of rows that now hold `tokens`."""
        places = torch.arange(count, device=tokens.device)
        drafted = ((places > 0) & (places < self.count[:, None]))[..., None]
        return torch.where(drafted, self.tokens[:, :count], tokens[:, None])

    def share(self, store: KVStore) -> None:
        """Gives all store rows of each row the content of its first."""
        first = torch.arange(self.tokens.shape[0], device=self.tokens.device) * self.most
        store.copy_rows(first.repeat_interleave(self.most))

    def tally(self, active: Tensor, steps: Tensor) -> None:
        """Counts a pass in rows `active` (B,), after which `steps` (B,) were certain."""
        self.passes = self.passes + active
        place = (steps - 1).clamp(0, self.most - 1)[:, None]
        self.taken = self.taken.scatter_add(1, place, active[:, None].long())

    def adapt(self, active: Tensor, steps: Tensor) -> None:
        """Twice as many canvases where all were right, else one more than were."""
        verified = active & (self.count > 1)
        wanted = torch.where(steps >= self.count, 2 * self.count, steps + 1)
        wanted = torch.maximum(wanted, torch.where(steps >= self.count, self.limit, 0))
        self.limit = torch.where(verified, wanted.clamp(2, self.most), self.limit)


def no_drafts(tokens: Tensor, most: int) -> Drafts:
    """Returns rows of canvas tokens (B, C) without drafts, of up to `most` canvases later on."""
    zeros = torch.zeros_like(tokens[:, 0])
    return Drafts(
        tokens=tokens[:, None].expand(-1, most, -1),
        count=zeros + 1,
        limit=zeros + most,
        passes=zeros,
        taken=zeros[:, None].expand(-1, most),
    )


def next_match(tokens: Tensor, variants: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which later variant equals each row, (B,) int64, and whether any does, (B,) bool.

    `variants` (B, R, C); only those after `place` (B,) count.
    """
    later = torch.arange(variants.shape[1], device=place.device) > place[:, None]
    same = (variants == tokens[:, None]).all(-1) & later
    return same.int().argmax(1), same.any(1)
