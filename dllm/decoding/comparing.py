"""Passes over variants of rows, of which the best goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.decoding.passes import Forward, PassResult, PlainPasses
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.processing import Rows
from dllm.state.progress import Progress
from dllm.state.rows import adopt_variants
from dllm.state.window import StepEvent, Window


@dataclass(frozen=True)
class ComparingPasses:
    """Passes over all variants of a row where there are any, of which the best goes on."""

    plain: PlainPasses
    num_variants: int

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        window = canvas.window(plan)
        if progress.comparing:
            before = window.tokens
            logits = self._compare(canvas, window, plan, forward)
            window = canvas.window(plan, window.active)
        else:
            logits = forward(canvas.tokens, plan)
        result = PassResult(plan, logits, forward.store)
        if self.plain.observer is not None:
            record = self.plain.record(canvas, window, result, progress, forward.model)
            self.plain.observer(replace(record, num_variants=self.num_variants))
        event = self.plain.step.take(canvas, window, result)
        # What the best variant has over the canvas was written before the window was taken.
        return replace(event, before=before) if progress.comparing else event

    def _compare(self, canvas: Canvas, window: Window, plan: StepPlan, forward: Forward) -> Tensor:
        """Runs a pass over all variants, keeps each row's best; returns its logits (B, w, V)."""
        variants, store, step = canvas.variants, forward.store, self.plain.step
        assert variants is not None
        num_rows, count = variants.columns.shape
        rows = torch.arange(num_rows, device=canvas.tokens.device)
        each = rows.repeat_interleave(count)
        if store is not None:
            store.copy_rows(each * count)
        tokens = variants.fill(canvas.tokens)
        logits = forward(tokens, plan.of_rows(each))
        view = canvas.view(window, step.noise).of_variants(variants.columns)
        own, lengths = logits[:, : window.columns.shape[1]], (view.prompt_length, view.length)
        if step.processing is not None:
            rows_ = Rows(tokens, *lengths, canvas.prompts[each])
            own = step.processing(own.to(step.sampling.dtype), view.columns, rows_)
        candidates = step.sampling.propose(own, step.noise, view.columns, view.step)
        winner = variants.pick(step.scheduler.appraise(candidates, view, variants), window.active)
        adopt_variants(canvas, winner, window.active)
        best = rows * count + winner
        if store is not None:
            store.copy_rows(best.repeat_interleave(count))
            store.weights[:] = [attention[best] for attention in store.weights]
            store.change[:] = [change[best.to(change.device)] for change in store.change]
        return logits[best]
