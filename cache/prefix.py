"""Prefix cache (Fast-dLLM): what stands before the block is frozen while the block is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.cache.base import Cache, Canvas, FirstToken, ModelSpec, Progress, StepPlan
from dllm.cache.passes import block_refresh, check_first_token, columns_from
from dllm.options import Count


@dataclass(frozen=True)
class PrefixCache(Cache):
    """Feeds everything when a block begins, then only from the block's start to the end.

    `first_token` is for shifted models, whose block is predicted from one column further left:
    `feed` adds that column to each pass; `force` commits the block's first token from the
    refresh, whatever its confidence (Fast-dLLM's Dream code).

    `refresh_every` feeds everything again after so many forwards of a block, so that 1 is no
    cache. dInfer counts through the whole run, and adds the step that follows to the refresh: a
    row would then be refreshed according to the rows beside it.
    """

    first_token: FirstToken = "feed"
    refresh_every: Count | None = None  # forwards of a block; None: only when it begins

    replayable = True
    source = (
        "arXiv 2505.22618; NVlabs/Fast-dLLM llada/generate.py; refresh_every: inclusionAI/dInfer"
    )

    def check(self, spec: ModelSpec) -> None:
        check_first_token(self.first_token, spec)

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        refresh = block_refresh(self.refresh_every, canvas, progress, spec, self.first_token)
        if refresh is not None:
            return refresh
        lead = spec.logit_shift if self.first_token == "feed" else 0
        width = progress.remaining + lead

        def following(begin: Tensor, *_: Tensor | int) -> StepPlan:
            start = (begin - lead).clamp(min=0)  # a block may begin at column 0
            return columns_from(start, width, canvas, spec)

        of = (canvas.block_start, canvas.length, width)
        plan: StepPlan = canvas.keep("plan", following, *of)
        return plan
