"""Dual cache (Fast-dLLM): everything outside the block is frozen while the block is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.cache.base import Cache, FirstToken, block_entry, check_first_token, columns_from
from dllm.canvas import Canvas, Status
from dllm.models.config import ModelSpec
from dllm.plan import StepPlan


@dataclass(frozen=True)
class DualCache(Cache):
    """Feeds everything when a block begins, then only the block and its `vicinity`.

    `vicinity` is the number of columns refreshed with the block on either side (dInfer);
    `first_token` is explained in `prefix.py`. A scheduler with a wider window than its block has
    the whole window fed.
    """

    vicinity_before: int = 0
    vicinity_after: int = 0
    first_token: FirstToken = "feed"

    source: ClassVar[str] = (
        "arXiv 2505.22618; NVlabs/Fast-dLLM llada/generate.py; vicinity: inclusionAI/dInfer"
    )

    def __post_init__(self) -> None:
        for name in ("vicinity_before", "vicinity_after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")

    def check(self, spec: ModelSpec) -> None:
        check_first_token(self.first_token, spec)

    def plan(self, canvas: Canvas, status: Status, spec: ModelSpec) -> StepPlan:
        if status.entered:
            return block_entry(canvas, spec, self.first_token)
        lead = spec.logit_shift if self.first_token == "feed" else 0
        before = self.vicinity_before + lead
        width = before + canvas.layout.window_length + self.vicinity_after
        start = (canvas.block_start - before).clamp(min=0)
        # What a scheduler cut off in this block stays visible until the next: it is frozen too.
        length = canvas.entry_length if canvas.layout.can_shorten else None
        return columns_from(start, width, canvas, spec, length)
