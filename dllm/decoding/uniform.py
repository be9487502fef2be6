"""Passes of the uniform process: an encoder before a row's block, and a decoder in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dllm.decoding.passes import Forward, PassResult, Step
from dllm.models.diffusion_gemma import DiffusionGemma, num_bytes
from dllm.schedulers.renoise import Renoise
from dllm.state.canvas import Canvas
from dllm.state.plan import PassShape, StepPlan
from dllm.state.progress import Progress
from dllm.state.window import StepEvent, Window


@dataclass
class Prefix:
    """What stands before the block of one row, and what its last forward gave."""

    store: Any  # the encoder's keys and values of columns before `end`
    end: int
    conditioning: Tensor | None = None  # (1, W, V) tempered logits; None: the block begins


@dataclass(frozen=True)
class UniformPasses:
    """Encodes what is new before a row's block, and denoises the block.

    Rows are run by themselves, so that no sum depends on the others of a batch.
    """

    step: Step
    model: DiffusionGemma
    scheduler: Renoise
    prefixes: dict[int, Prefix] = field(default_factory=dict)  # of rows under way, by prompt
    seats: list[tuple[int, int]] = field(default_factory=list)  # prompt and block of each row

    num_variants = 1

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        plan = replace(plan, kind="step")
        window = canvas.window(plan)
        view = canvas.view(window, self.step.noise)
        fed = self.scheduler.fed(view)
        heat = self.scheduler.temperature(view.block_step)
        logits = torch.zeros(*fed.shape, self.model.spec.vocab_size, device=fed.device)
        logits[..., -1] = -torch.inf  # the flag
        for row, prompt, start in self._running(canvas, window, progress):
            prefix = self._prefix(canvas.tokens[row : row + 1], prompt, start, forward)
            count = min(fed.shape[1], canvas.layout.lengths[prompt] - start)
            found = self._denoise(fed[row : row + 1, :count], prefix, forward)
            prefix.conditioning = (found / heat[row]).to(self.model.dtype)
            logits[row, :count, :-1] = found[0]
        return self.step.take(canvas, window, PassResult(plan, logits))

    def _running(
        self, canvas: Canvas, window: Window, progress: Progress
    ) -> list[tuple[int, int, int]]:
        """Returns row, prompt and block start of the rows under way, and drops what others left.

        Where rows are changes only as one enters a block, and only then the host reads it.
        """
        active = [not finished for finished in progress.finished]
        if progress.entered:
            places = [canvas.prompts, canvas.block_start, window.active.long()]
            read = torch.stack(places, 1).tolist()
            self.seats[:] = [(prompt, start) for prompt, start, _ in read]
            active = [bool(one) for *_, one in read]
        running = [(row, *seat) for row, seat in enumerate(self.seats) if active[row]]
        for prompt in self.prefixes.keys() - {prompt for _, prompt, _ in running}:
            del self.prefixes[prompt]
        return running

    def _prefix(self, tokens: Tensor, prompt: int, start: int, forward: Forward) -> Prefix:
        """Returns what stands before a row's block, encoded up to there."""
        known = self.prefixes.setdefault(prompt, Prefix(None, 0))
        if known.end < start:
            known.store = self.model.encode(tokens[:, known.end : start], known.store)
            count = start - known.end
            shape = PassShape("refresh", 1, count, start, count, num_logit_rows=0)
            known.end, known.conditioning = start, None
            forward.meter.passes.append(shape)
            held = sum(num_bytes(one.store) for one in self.prefixes.values())
            forward.meter.store_bytes = max(forward.meter.store_bytes, held)
        return known

    def _denoise(self, fed: Tensor, prefix: Prefix, forward: Forward) -> Tensor:
        """Returns the logits (1, W, V) of a pass of the decoder, which stores nothing."""
        width = fed.shape[1]
        forward.meter.passes.append(PassShape("step", 1, width, prefix.end, 0, width))
        return self.model.denoise(fed, prefix.store, prefix.conditioning)
