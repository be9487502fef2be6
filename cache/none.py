"""No cache: every pass feeds the whole canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dllm.cache.base import Cache, every_column
from dllm.canvas import Canvas, Status
from dllm.models.config import ModelSpec
from dllm.plan import StepPlan


@dataclass(frozen=True)
class NoCache(Cache):
    """Recomputes everything at each step: the exact reference of every other cache."""

    source: ClassVar[str] = "ML-GSAI/LLaDA generate.py; DreamLM/Dream generation_utils.py"
    stores: ClassVar[bool] = False
    lockstep: ClassVar[bool] = False

    def plan(self, canvas: Canvas, status: Status, spec: ModelSpec) -> StepPlan:
        return every_column(canvas, spec, store=False)
