"""FreeCache (FlashDLM): what stands before the block keeps the keys that it once had."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import chosen_columns


@dataclass(frozen=True)
class FreeCache(Cache):
    """Feeds everything in a row's first pass, then from the block's start to the end.

    Nothing is ever refreshed: `prefix` without its refreshes. A block keeps the keys of the last
    pass that fed it, and that one came before its last step: what that step wrote is a mask to
    all who look at it later, as in the authors' code. In shifted models each pass feeds the
    column before the block as well, so that there the last token of all is fed once more.

    Their guided decoding needs a second, autoregressive model, and is not here; nor is the window
    that slides with the first mask, whose code does not run.
    """

    source = "arXiv 2505.21467; ZhanqiuHu/flash-dlm-experimental src/model/llada_v2/generate.py"
    names_columns = True
    lockstep = False

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "full":
            raise ValueError(
                "cache 'free' keeps what blocks were while masks stood in them, and in a model "
                f"with {spec.attention} attention none needs to: use 'block_causal' or 'sub_block'"
            )

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        start = torch.where(canvas.step > 0, canvas.block_start - spec.logit_shift, 0)
        fed = (canvas.numbers >= start[:, None]) & (canvas.numbers < canvas.length[:, None])
        return fed & canvas.active[:, None]

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        return chosen_columns(self.fed(canvas, spec), canvas, progress, spec)
