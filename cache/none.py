"""No cache: every pass feeds the whole canvas."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import encoded_and_decoded, every_column, seen_up_to, without_hidden


@dataclass(frozen=True)
class NoCache(Cache):
    """Recomputes everything at each step: the exact reference of every other cache.

    `beyond_block=False` hides what follows the block, as if the canvas ended with it
    (huggingface/diffusers pipeline_llada2.py).
    """

    beyond_block: bool = True

    replayable = True
    source = "ML-GSAI/LLaDA generate.py; DreamLM/Dream generation_utils.py"
    uses_store = False
    lockstep = False
    even = True
    masks_last = True
    encodes = True

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        if spec.attention == "encoder_decoder":  # no block sees a later one
            before = canvas.numbers[: progress.reach].expand(canvas.layout.num_rows, -1)
            return encoded_and_decoded(before, before, canvas.columns(), canvas)
        if self.beyond_block:
            plan = every_column(canvas, spec, store=False, width=progress.length)
            return without_hidden(plan, canvas)
        end = torch.minimum(canvas.length, canvas.block_end)
        plan = every_column(canvas, spec, store=False, width=progress.reach)
        plan = seen_up_to(end, plan, canvas, spec)
        return replace(plan, known=canvas.columns() < end[:, None])
