"""No cache: every pass feeds the whole canvas."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dllm.cache.base import Cache, every_column, seen_up_to
from dllm.models.config import ModelSpec
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.status import Status


@dataclass(frozen=True)
class NoCache(Cache):
    """Recomputes everything at each step: the exact reference of every other cache.

    `beyond_block=False` hides what follows the block, as if the canvas ended with it
    (huggingface/diffusers pipeline_llada2.py).
    """

    beyond_block: bool = True

    source: ClassVar[str] = "ML-GSAI/LLaDA generate.py; DreamLM/Dream generation_utils.py"
    stores: ClassVar[bool] = False
    lockstep: ClassVar[bool] = False
    even: ClassVar[bool] = True

    def plan(self, canvas: Canvas, status: Status, spec: ModelSpec) -> StepPlan:
        if self.beyond_block:
            return every_column(canvas, spec, store=False, width=status.length)
        end = torch.minimum(canvas.length, canvas.block_end)
        plan = every_column(canvas, spec, store=False, width=status.reach)
        plan = seen_up_to(end, plan, canvas, spec)
        return replace(plan, known=canvas.columns() < end[:, None])
