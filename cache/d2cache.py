"""d2Cache: masks near decoded text, what has changed, and what attention rests on are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.cache.base import Cache, chosen_columns, every_column, predictors
from dllm.density import decoded_share
from dllm.models.config import ModelSpec
from dllm.state.candidates import rank
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.status import Status


@dataclass(frozen=True)
class D2Cache(Cache):
    """Feeds `masks` masks, what changed since it was fed, and the share `rollout` of the attention.

    Masks go by confidence times the share of decoded text nearby (`sigma` columns wide), those of
    the block first, then those up to the end of the block in which their number is reached. Of
    all other columns the ones are fed that got most attention in the last pass, up to `rollout` of
    what these columns got, and one at least. So is what lies between two fed columns at most `gap`
    apart. Only the first pass feeds everything. The authors decode with scheduler
    `certainty_density` in one block.

    Their code ranks masks by the confidences of the first pass for ever: the ones that come later
    go to a copy, under a condition that is never true. Here the last confidence counts. They also
    fill rows up to the same number of columns; here a row does not depend on its batch.
    """

    masks: int = 32
    rollout: float = 0.1  # of the attention that columns got which are not fed for another reason
    sigma: float = 10.0  # columns
    gap: int = 4  # columns

    source: ClassVar[str] = "arXiv 2509.23094; Kamichanw/d2Cache src/cache/d2cache.py"
    scattered: ClassVar[bool] = True
    lockstep: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "certainty": {"gap": 0},  # in one block, with scheduler `certainty_density`
        "blocks": {"gap": 4},
    }

    def __post_init__(self) -> None:
        if self.masks < 1:
            raise ValueError(f"masks={self.masks} must be at least 1: nothing else is committed")
        if not 0 <= self.rollout <= 1:
            raise ValueError(f"rollout={self.rollout} must be a share between 0 and 1")
        if self.sigma <= 0:
            raise ValueError(f"sigma={self.sigma} must be positive")
        if self.gap < 0:
            raise ValueError(f"gap={self.gap} must be at least 0")

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "full":
            raise ValueError(
                "cache 'd2cache' refreshes columns on both sides of the block, and in a model with "
                f"{spec.attention} attention none needs it: use 'block_causal' or 'sub_block'"
            )

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        columns = canvas.numbers
        real = (columns < canvas.length[:, None]) & canvas.active[:, None]
        if canvas.seen is None:
            return real
        fed = predictors(self._likely(canvas), spec) | (canvas.tokens != canvas.seen.tokens)
        if canvas.layout.whole_block:
            fed = fed | predictors(canvas.block, spec)
        fed = fed & real
        return real & self._closed(fed | self._important(canvas.seen.importance, real & ~fed))

    def admits(self, status: Status) -> bool:
        return not status.unfinished  # the first pass of all rows is one of its own

    def plan(self, canvas: Canvas, status: Status, spec: ModelSpec) -> StepPlan:
        if canvas.seen is None:
            plan = every_column(canvas, spec, store=True, width=status.length)
            wanted, most = canvas.masked, canvas.layout.num_slots
        else:
            plan = chosen_columns(self.feeds(canvas, spec), canvas, status, spec)
            wanted, most = self._likely(canvas), self.masks
        plan = replace(plan, maps=True)
        if canvas.layout.width >= canvas.layout.num_slots:  # the window shows all of them
            return plan
        beyond = torch.arange(wanted.shape[1], device=wanted.device) > canvas.columns()[:, -1:]
        return _with_logits_of(wanted & beyond, most, plan, spec)

    def _likely(self, canvas: Canvas) -> Tensor:
        """Returns the masks that are fed for their own sake, (B, C) bool."""
        assert canvas.seen is not None
        masked, length = canvas.masked, canvas.layout.block_length
        columns = canvas.numbers
        enough = masked.cumsum(1) >= self.masks
        last = torch.where(enough.any(1), enough.int().argmax(1), masked.shape[1])
        behind = (last - canvas.block_end).div(length, rounding_mode="floor") + 1
        end = canvas.block_end + behind.clamp(min=0) * length
        nearby = masked & (columns < end[:, None])
        score = canvas.seen.confidence * self._density(canvas)
        first = nearby & canvas.block
        later = rank(score, nearby & ~canvas.block) + first.sum(1, keepdim=True)
        place = torch.where(first, rank(score, first), later)
        return nearby & (place < self.masks)

    def _density(self, canvas: Canvas) -> Tensor:
        """Returns how much of the text around each slot is decoded, (B, C); elsewhere 0."""
        slots = torch.arange(canvas.layout.num_slots, device=canvas.tokens.device)
        columns = canvas.prompt_length[:, None] + slots
        decoded = (~canvas.masked).gather(1, columns) & (columns < canvas.length[:, None])
        share = decoded_share(
            decoded,
            slots.expand_as(columns),
            canvas.length - canvas.prompt_length,
            self.sigma,
            torch.float32,
        )
        return torch.zeros_like(canvas.tokens, dtype=share.dtype).scatter(1, columns, share)

    def _important(self, importance: Tensor, others: Tensor) -> Tensor:
        """Returns which of the `others` (B, C) bool got most attention, (B, C) bool."""
        if self.rollout == 1:  # whatever rounding makes of the sum
            return others
        got = F.pad(importance, (0, others.shape[1] - importance.shape[1])).double()
        got = torch.where(others, got, 0)
        place = rank(got, others)
        order = place.argsort(1)
        total = got.gather(1, order).cumsum(1) / got.sum(1, keepdim=True).clamp(min=1e-9)
        return others & ((total.gather(1, place) <= self.rollout) | (place == 0))

    def _closed(self, fed: Tensor) -> Tensor:
        """Returns the columns `fed` (B, C) bool with the narrow gaps between them."""
        columns = torch.arange(fed.shape[1], device=fed.device)
        far = fed.shape[1] + self.gap
        before = torch.where(fed, columns, -far).cummax(1).values
        after = torch.where(fed, columns, 2 * far).flip(1).cummin(1).values.flip(1)
        return fed | (after - before <= self.gap)


def _with_logits_of(wanted: Tensor, most: int, plan: StepPlan, spec: ModelSpec) -> StepPlan:
    """Returns the plan that gives logits of the columns `wanted` (B, C) bool too, `most` a row.

    Rows that want fewer ask for the last spare column, of which nobody reads anything.
    """
    order = (~wanted).to(torch.uint8).sort(dim=1, stable=True).indices[:, :most]
    extra = torch.where(wanted.gather(1, order), order, wanted.shape[1] - 1)
    place = torch.arange(plan.columns.shape[1], device=wanted.device).expand_as(plan.columns)
    places = torch.zeros_like(wanted, dtype=torch.int64).scatter(1, plan.columns, place)
    head = places.gather(1, extra - spec.logit_shift)
    return replace(plan, head=torch.cat([plan.head, head], 1), extra=extra)
