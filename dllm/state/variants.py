"""Candidate rows: several continuations of a row that one forward pass looks at together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.state.plan import StepPlan


@dataclass(frozen=True)
class Branches:
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

    def merge(self, new: Branches, active: Tensor) -> Branches:
        """Returns the new variants of the rows that took part in a step, the old of others."""
        wide = active[:, None]
        return Branches(
            columns=torch.where(wide, new.columns, self.columns),
            tokens=torch.where(wide, new.tokens, self.tokens),
            confidence=torch.where(wide, new.confidence, self.confidence),
            valid=torch.where(wide, new.valid, self.valid),
            needed=torch.where(active, new.needed, self.needed),
        )


def no_branches(num_rows: int, count: int, device: torch.device) -> Branches:
    """Returns rows without variants."""
    none = torch.full((num_rows, count), -1, device=device)
    never = torch.zeros_like(none, dtype=torch.bool)
    return Branches(none, torch.zeros_like(none), none.float(), never, never[:, 0])


def fan_out(plan: StepPlan, count: int, num_columns: int) -> StepPlan:
    """Returns the pass that feeds every row `count` times, each with its own part of the store.

    Row b becomes rows b * count to b * count + count - 1; so do the store's rows, of
    `num_columns` slots each.
    """

    def each(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(count, 0)

    columns, slots = each(plan.columns), None
    if plan.slots is not None:
        base = torch.arange(plan.slots.shape[0], device=columns.device)[:, None] * num_columns
        rows = torch.arange(columns.shape[0], device=columns.device)[:, None] * num_columns
        scratch = plan.slots.shape[0] * num_columns
        slots = each(plan.slots - base) + rows
        slots = slots.masked_fill(each(plan.slots == scratch), scratch * count)
    every = each(torch.arange(plan.columns.shape[0], device=columns.device))
    return replace(
        plan,
        columns=columns,
        head=each(plan.head),
        attend=None if plan.attend is None else each(plan.attend),
        known=None if plan.known is None else each(plan.known),
        eligible=None if plan.eligible is None else each(plan.eligible),
        forced=None if plan.forced is None else each(plan.forced),
        slots=slots,
        extra=None if plan.extra is None else each(plan.extra),
        reuse=None if plan.reuse is None else plan.reuse.of_rows(every),
        retain=None if plan.retain is None else plan.retain.of_rows(every),
    )
