"""Passes of the uniform process: an encoder before the rows' blocks, and a decoder in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm.cache.passes import gathered
from dllm.decoding.passes import Forward, PassResult, Step
from dllm.models.diffusion_gemma import DiffusionGemma
from dllm.models.encoder_keys import EncoderKeys
from dllm.schedulers.renoise import Renoise
from dllm.state.canvas import Canvas
from dllm.state.plan import PassShape, StepPlan
from dllm.state.progress import Progress
from dllm.state.window import StepEvent


@dataclass
class UniformPasses:
    """Encodes what is new before the rows' blocks, and denoises all blocks in one pass."""

    step: Step
    model: DiffusionGemma
    scheduler: Renoise
    keys: EncoderKeys  # of the text before the blocks
    conditioning: Tensor | None = None  # (B, W, V) tempered logits of the last forward

    num_variants = 1

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        plan = replace(plan, kind="step")
        window = canvas.window(plan)
        if progress.num_fed:
            self._encode(canvas, progress, forward)
        view = canvas.view(window, self.step.noise)
        sight = self.keys.denoising(window.columns, canvas.length, progress.reach)
        fed = self.scheduler.fed(view)
        logits = self.model.denoise(fed, sight, self.keys, self.conditioning, ~view.fresh)
        rows, width = fed.shape
        shape = PassShape("step", rows, width, self.keys.num_keys, 0, width)
        forward.meter.passes.append(shape)
        heat = self.scheduler.temperature(view.block_step)[:, None, None]
        self.conditioning = (logits / heat).to(self.model.dtype)
        logits = pad(logits, (0, 1), value=-torch.inf)  # the flag
        return self.step.take(canvas, window, PassResult(plan, logits))

    def _encode(self, canvas: Canvas, progress: Progress, forward: Forward) -> None:
        """Reads the columns that `unread` names, of which no row has more than `num_fed`."""
        columns, real = gathered(unread(canvas), progress.num_fed, canvas)
        sight = self.keys.reading(columns, real, canvas.clean, progress.reach)
        num_keys = self.keys.num_keys + progress.num_fed
        self.model.encode(canvas.tokens.gather(1, columns), sight, self.keys)
        rows, count = columns.shape
        meter = forward.meter
        meter.passes.append(PassShape("refresh", rows, count, num_keys, count, num_logit_rows=0))
        meter.store_bytes = max(meter.store_bytes, self.keys.num_bytes)


def unread(canvas: Canvas) -> Tensor:
    """Returns the columns before each row's block that the encoder has not read, (B, C) bool."""
    new = (canvas.numbers >= canvas.clean[:, None]) & (canvas.numbers < canvas.block_start[:, None])
    return new & ~canvas.finished[:, None]
