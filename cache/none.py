"""No cache: every pass feeds the whole canvas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dllm.cache.base import Cache, every_column, seen_up_to
from dllm.models.config import ModelSpec
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import Progress


@dataclass(frozen=True)
class NoCache(Cache):
    """Recomputes everything at each step: the exact reference of every other cache.

    `beyond_block=False` hides what follows the block, as if the canvas ended with it
    (huggingface/diffusers pipeline_llada2.py).
    """

    beyond_block: bool = True

    replayable: ClassVar[bool] = True
    source: ClassVar[str] = "ML-GSAI/LLaDA generate.py; DreamLM/Dream generation_utils.py"
    uses_store: ClassVar[bool] = False
    lockstep: ClassVar[bool] = False
    even: ClassVar[bool] = True

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        if self.beyond_block:
            return every_column(canvas, spec, store=False, width=progress.length)
        end = torch.minimum(canvas.length, canvas.block_end)
        plan = every_column(canvas, spec, store=False, width=progress.reach)
        plan = seen_up_to(end, plan, canvas, spec)
        return replace(plan, known=canvas.columns() < end[:, None])
