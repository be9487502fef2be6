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
    (huggingface/diffusers pipeline_llada2.py). `beyond_length=False` hides the columns of a last
    block that are decoded beyond the length asked for, and cut afterwards, as it does too.
    """

    beyond_block: bool = True
    beyond_length: bool = True

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
        width = progress.length if self.beyond_block else progress.reach
        plan, end = every_column(canvas, spec, store=False, width=width), canvas.length
        if self.beyond_block and self.beyond_length:
            return without_hidden(plan, canvas)
        end = end if self.beyond_block else torch.minimum(end, canvas.block_end)
        seen = end if self.beyond_length else torch.minimum(end, canvas.kept_length)
        plan = seen_up_to(seen, plan, canvas, spec)
        return plan if self.beyond_block else replace(plan, known=canvas.columns() < end[:, None])

    def check(self, spec: ModelSpec) -> None:
        if spec.attention == "encoder_decoder" and not (self.beyond_block and self.beyond_length):
            raise ValueError(
                "cache 'none' with beyond_block=False or beyond_length=False hides columns, and an "
                "encoder and a decoder see what is committed and the open block alone: leave it out"
            )
