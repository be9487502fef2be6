"""Several continuations of a row that one pass runs: variants to choose from, and drafts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.state.store import KVStore


@dataclass(frozen=True)
class Variants:
    """R variants of each canvas row; each differs from the canvas in at most one column.

    The first variant is what the row does if no other is better.
    """

    columns: Tensor  # (B, R) int64 canvas column that the variant fills; -1: none
    tokens: Tensor  # (B, R) int64 what it writes there
    confidence: Tensor  # (B, R) float probability of that token when it was proposed
    valid: Tensor  # (B, R) bool: the variant may win; the first one always is
    needed: Tensor  # (B,) bool: the row has variants at all

    @property
    def count(self) -> int:
        """R, the number of variants."""
        return self.columns.shape[1]

    def fill(self, tokens: Tensor) -> Tensor:
        """Returns the canvas tokens (B, C) of every variant, (B * R, C)."""
        rows = tokens.repeat_interleave(self.count, 0)
        columns, written = self.columns.flatten()[:, None], self.tokens.flatten()[:, None]
        at = columns.clamp(min=0)
        return rows.scatter(1, at, torch.where(columns >= 0, written, rows.gather(1, at)))

    def pick(self, score: Tensor, active: Tensor) -> Tensor:
        """Returns each row's best variant (B,) int64 by score (B, R); the first of equal ones."""
        allowed = self.valid & self.needed[:, None] & active[:, None]
        score = score.masked_fill(~allowed, -torch.inf)
        return torch.where(self.needed & active, score.argmax(1), 0)

    def merge(self, new: Variants, active: Tensor) -> Variants:
        """Returns the new variants of the rows that took part in a step, the old of others."""
        wide = active[:, None]
        return Variants(
            columns=torch.where(wide, new.columns, self.columns),
            tokens=torch.where(wide, new.tokens, self.tokens),
            confidence=torch.where(wide, new.confidence, self.confidence),
            valid=torch.where(wide, new.valid, self.valid),
            needed=torch.where(active, new.needed, self.needed),
        )


def no_variants(num_rows: int, count: int, device: torch.device) -> Variants:
    """Returns rows without variants."""
    none = torch.full((num_rows, count), -1, device=device)
    never = torch.zeros_like(none, dtype=torch.bool)
    return Variants(none, torch.zeros_like(none), none.float(), never, never[:, 0])


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
    adaptive: bool = False  # rows whose drafts fail draft fewer
    begin: int | None = None  # the limit of a row's first draft; None: by `adaptive`
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

    def restarted(self, tokens: Tensor, places: Tensor) -> Drafts:
        """Returns the same with the rows of `tokens` (B, C) at places (n,) at their beginning."""
        fresh = no_drafts(tokens, self.most, self.adaptive, self.begin)
        at = torch.zeros_like(self.count, dtype=torch.bool).index_fill(0, places, True)
        return replace(
            self,
            count=torch.where(at, fresh.count, self.count),
            limit=torch.where(at, fresh.limit, self.limit),
            passes=torch.where(at, fresh.passes, self.passes),
            taken=torch.where(at[:, None], fresh.taken, self.taken),
        )

    def filed(self, among: Drafts | None, rows: Tensor, num_rows: int) -> Drafts:
        """Returns the counts of these rows at the places `rows` (B,) of others, `num_rows`."""
        if among is None:
            zeros = torch.zeros(num_rows, dtype=torch.int64, device=rows.device)
            taken = zeros[:, None].expand(-1, self.most)
            among = Drafts(self.tokens, zeros, zeros, passes=zeros, taken=taken)
        passes = among.passes.index_copy(0, rows, self.passes)
        return replace(among, passes=passes, taken=among.taken.index_copy(0, rows, self.taken))

    def note(self, active: Tensor, steps: Tensor) -> None:
        """Counts a pass in rows `active` (B,) that took `steps` (B,); adapts what comes next."""
        self.passes = self.passes + active
        place = (steps - 1).clamp(0, self.most - 1)[:, None]
        took = active & (steps > 0)
        self.taken = self.taken.scatter_add(1, place, took[:, None].long())
        if self.adaptive:
            self._adapt(active, steps)

    def window(self, limit: Tensor, count: Tensor) -> None:
        """Takes the most canvases (B,) that a draft may have, and those of the next one (B,)."""
        self.limit, self.count = limit, count

    def expect(self, tokens: Tensor, count: Tensor) -> None:
        """Takes new drafts: canvases (B, R, C), of which the first `count` (B,) are to be run."""
        self.tokens, self.count = tokens, count

    def _adapt(self, active: Tensor, steps: Tensor) -> None:
        """Twice as many canvases where all were right, else one more than were.

        A pass of c canvases and s steps changes c plus the limit by 2 s at most. Rows begin with a
        limit of 2, so all passes together run at most 2 canvases for each step, and 2 more.
        """
        verified = active & (self.count > 1)
        right = steps >= self.count
        wanted = torch.where(right, torch.maximum(2 * self.count, self.limit), steps + 1)
        self.limit = torch.where(verified, wanted.clamp(2, self.most), self.limit)


def no_drafts(tokens: Tensor, most: int, adaptive: bool, begin: int | None = None) -> Drafts:
    """Returns rows of canvas tokens (B, C) that have no drafts yet, and `most` canvases later.

    The first ones have `begin` canvases at most; None: two if adaptive, else all.
    """
    zeros = torch.zeros_like(tokens[:, 0])
    first = min(most, 2) if adaptive else most
    return Drafts(
        tokens=tokens[:, None].expand(-1, most, -1),
        count=zeros + 1,
        limit=zeros + (first if begin is None else begin),
        passes=zeros,
        taken=zeros[:, None].expand(-1, most),
        adaptive=adaptive,
        begin=begin,
    )


def next_match(tokens: Tensor, variants: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which later variant equals each row, (B,) int64, and whether any does, (B,) bool.

    `variants` (B, R, C); only those after `place` (B,) count.
    """
    later = torch.arange(variants.shape[1], device=place.device) > place[:, None]
    same = (variants == tokens[:, None]).all(-1) & later
    return same.int().argmax(1), same.any(1)
