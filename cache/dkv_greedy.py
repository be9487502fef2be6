"""dKV-Cache-Greedy: only what is about to be committed is computed, and what was just committed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import chosen_columns, every_column, predictors
from dllm.options import Count, CountOrNone
from dllm.state.candidates import rank


@dataclass(frozen=True)
class GreedyDelayedCache(Cache):
    """Feeds what the next step commits, with `window` masks around it, and what the last one did.

    Everything is fed every `refresh` forwards of a block. The order must be known beforehand:
    scheduler `fixed_quota:order=planned`. The nearest masks come first, the left of two; masks
    that are not fed keep the keys of the refresh.
    """

    refresh: Count = 2  # forwards of a block
    window: CountOrNone = 4  # masks for each column that is about to be committed

    source = "arXiv 2505.15781; horseee/dKV-Cache generation_utils/llada_dkv_cache_greedy.py"
    names_columns = True
    needs_plan = True

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        columns = canvas.numbers
        real = (columns < canvas.length[:, None]) & canvas.active[:, None]
        fresh = (canvas.step - canvas.entry_step) % self.refresh == 0
        if canvas.planned is None:  # before the first step
            return real
        late = (canvas.commit_step == (canvas.step - 1)[:, None]) & ~canvas.fixed
        near = self._around(canvas.planned, canvas)
        return real & (fresh[:, None] | late | near | predictors(near, spec))

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        if progress.num_fed == progress.length:
            return every_column(canvas, spec, store=True, width=progress.length)
        return chosen_columns(self.fed(canvas, spec), canvas, progress, spec)

    def _around(self, planned: Tensor, canvas: Canvas) -> Tensor:
        """Returns the planned columns (B, n) and the masks around them, (B, C) bool."""
        columns = canvas.numbers
        found = (columns == planned[..., None]).any(1)
        for target in planned.unbind(1):  # as many as a step commits, known to the host
            distance = columns - target[:, None]
            order = -(2 * distance.abs() + (distance > 0)).float()
            place = rank(order, canvas.masked & ~found)
            nearest = (place < self.window) & canvas.masked & ~found
            found = found | (nearest & (target >= 0)[:, None])
        return found
