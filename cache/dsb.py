"""DSB cache: fed from the first mask to the block's end, refreshed after so many tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache.base import Cache, Candidates, Canvas, KVStore, ModelSpec, Progress, StepPlan
from dllm.cache.passes import chosen_columns, predictors
from dllm.options import Count, CountOrNone


@dataclass(frozen=True)
class DSBCache(Cache):
    """Feeds from `before` columns in front of the first mask to `after` behind the block's end.

    More in front where the last step committed more: what it wrote is always fed once more. A row
    has everything fed again once it has committed `refresh` tokens since it had, which may be in
    the middle of a block. That is the cache of scheduler `sliding`, whose block's end moves; one
    with a wider window than its block sees the rest of it at refreshes alone.

    In the authors' code what stands behind the block's end may be committed where `after` is not
    0, by an index that is off by the columns that are not fed; here it never is.
    """

    before: CountOrNone = 24  # columns, at least
    after: CountOrNone = 0  # columns
    refresh: Count | None = None  # committed tokens; None: as many as a block has

    source = "arXiv 2602.05992; lizhuo008/DSB llada/generate.py:generate_dsb_cache"
    names_columns = True
    lockstep = False
    watches = True
    presets = {"published": {"before": 24, "after": 0}}

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "full":
            raise ValueError(
                "cache 'dsb' keeps what both sides of the block were at its last refresh, and "
                f"in a model with {spec.attention} attention none needs it: use 'block_causal' or "
                "'sub_block'"
            )

    def admits(self, progress: Progress) -> bool:
        return not progress.unfinished  # when each row was refreshed is noted of all together

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        real = (canvas.numbers < canvas.length[:, None]) & canvas.active[:, None]
        late = (canvas.commit_step == (canvas.step - 1)[:, None]) & ~canvas.fixed
        masked = canvas.masked & canvas.block
        first = _first(masked, canvas.block_start)
        advance = first - _first(masked | late, canvas.block_start)
        start = first - advance.clamp(min=self.before)
        near = canvas.numbers >= start[:, None]
        near = near & (canvas.numbers < (canvas.block_end + self.after)[:, None])
        fed = near | predictors(masked, spec) | late  # edits may lie in front of all that
        if canvas.layout.whole_block:
            fed = fed | predictors(canvas.block, spec)
        return real & (fed | self._due(canvas)[:, None])

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        return chosen_columns(self.fed(canvas, spec), canvas, progress, spec)

    def watch(
        self,
        canvas: Canvas,
        plan: StepPlan,
        store: KVStore | None,
        candidates: Candidates,
        further: Candidates | None,
    ) -> Refreshed:
        before = canvas.step if canvas.cache_state is None else canvas.cache_state.step
        return Refreshed(torch.where(self._due(canvas), canvas.step, before))

    def _due(self, canvas: Canvas) -> Tensor:
        """Returns which rows the next pass refreshes, (B,) bool."""
        if canvas.cache_state is None:
            return torch.ones_like(canvas.finished)
        done = canvas.commit_step
        # A variant that won is written before its pass was watched, with that pass's step.
        counted = (done >= canvas.cache_state.step[:, None]) & (done < canvas.step[:, None])
        enough = canvas.layout.block_length if self.refresh is None else self.refresh
        return (counted & ~canvas.fixed).sum(1) >= enough


@dataclass(frozen=True)
class Refreshed:
    """When each row had everything fed."""

    step: Tensor  # (B,) int64 forwards that it had taken part in


def _first(columns: Tensor, usual: Tensor) -> Tensor:
    """Returns the first of columns (B, C) bool in each row, `usual` (B,) where there is none."""
    return torch.where(columns.any(1), columns.int().argmax(1), usual)
