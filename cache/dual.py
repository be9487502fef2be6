"""Dual cache (Fast-dLLM): everything outside the block is frozen while the block is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.cache.base import Cache, Canvas, FirstToken, ModelSpec, Progress, StepPlan
from dllm.cache.passes import block_refresh, check_first_token, columns_from, seen_up_to
from dllm.options import Count, CountOrNone


@dataclass(frozen=True)
class DualCache(Cache):
    """Feeds everything when a block begins, then only the block and its `vicinity`.

    `vicinity` is the number of columns refreshed with the block on either side (dInfer);
    `first_token` and `refresh_every` are explained in `prefix.py`. A scheduler with a wider window
    than its block has the whole window fed.
    """

    vicinity_before: CountOrNone = 0
    vicinity_after: CountOrNone = 0
    first_token: FirstToken = "feed"
    refresh_every: Count | None = None  # forwards of a block; None: only when it begins

    even = True
    replayable = True
    source = (
        "arXiv 2505.22618; NVlabs/Fast-dLLM llada/generate.py; vicinity, refresh_every: "
        "inclusionAI/dInfer"
    )

    def check(self, spec: ModelSpec) -> None:
        check_first_token(self.first_token, spec)

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        refresh = block_refresh(self.refresh_every, canvas, progress, spec, self.first_token)
        if refresh is not None:
            return refresh
        window = min(canvas.layout.window_length, progress.remaining)
        of = (canvas.block_start, canvas.entry_length, canvas.length, window)
        return canvas.keep("plan", lambda *_: self._within(canvas, window, spec), *of)

    def _within(self, canvas: Canvas, window: int, spec: ModelSpec) -> StepPlan:
        """Returns the passes of a block that follow the one which begins it."""
        lead = spec.logit_shift if self.first_token == "feed" else 0
        before = self.vicinity_before + lead
        width = before + window + self.vicinity_after
        plan = columns_from((canvas.block_start - before).clamp(min=0), width, canvas, spec)
        if not canvas.layout.can_shorten or self.refresh_every is not None:
            return plan
        # What a scheduler cut off in this block stays visible until the next: it is frozen too.
        # A refresh would have left it out, and where it was last is not known any more.
        return seen_up_to(canvas.entry_length, plan, canvas, spec)
