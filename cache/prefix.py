"""Prefix cache (Fast-dLLM): what stands before the block is frozen while the block is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.cache.base import Cache, FirstToken, block_entry, check_first_token, columns_from
from dllm.canvas import Canvas, Status
from dllm.models.config import ModelSpec
from dllm.plan import StepPlan


@dataclass(frozen=True)
class PrefixCache(Cache):
    """Feeds everything when a block begins, then only from the block's start to the end.

    `first_token` is for shifted models, whose block is predicted from one column further left:
    `feed` adds that column to each pass; `force` commits the block's first token from the
    refresh, whatever its confidence (Fast-dLLM's Dream code).
    """

    first_token: FirstToken = "feed"

    source: ClassVar[str] = "arXiv 2505.22618; NVlabs/Fast-dLLM llada/generate.py"

    def check(self, spec: ModelSpec) -> None:
        check_first_token(self.first_token, spec)

    def plan(self, canvas: Canvas, status: Status, spec: ModelSpec) -> StepPlan:
        if status.entered:
            return block_entry(canvas, spec, self.first_token)
        lead = spec.logit_shift if self.first_token == "feed" else 0
        start = canvas.block_start - lead
        return columns_from(start, status.remaining + lead, canvas, spec)
