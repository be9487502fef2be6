"""The denoising loop: plan, forward, propose, decide, commit; until every row is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache import Cache
from dllm.candidates import Candidates
from dllm.canvas import AtEnd, Canvas, Commit, Status, Window
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.noise import Noise
from dllm.output import GenerationOutput
from dllm.plan import PassKind, StepPlan
from dllm.sampling import Sampling
from dllm.schedulers import Decision, Scheduler, View


class BrokenLogitsError(RuntimeError):
    """The model returned logits that are not numbers; `partial` is what was committed before."""

    partial: GenerationOutput | None = None


@dataclass(frozen=True)
class StepEvent:
    """What one step did to the window of each row."""

    kind: PassKind
    columns: Tensor  # (B, W) int64
    tokens: Tensor  # (B, W) int64 after the step
    committed: Tensor  # (B, W) bool: written by this step
    drafts: Tensor  # (B, W) int64 what the model would put where a mask is left
    confidence: Tensor  # (B, W) float of the drafts


@dataclass(frozen=True)
class DenoisingLoop:
    """Any model, scheduler and cache, one step at a time.

    Host and device meet once a step, in `Canvas.settle`.
    """

    model: DenoisingModel
    scheduler: Scheduler
    cache: Cache
    sampling: Sampling
    noise: Noise
    at_eos: AtEnd = "stop"

    @torch.inference_mode()
    def run(self, canvas: Canvas, meter: Meter) -> Iterator[StepEvent]:
        """Denoises the canvas in place and yields what each step did."""
        rows, columns = canvas.tokens.shape
        store = self.model.new_store(rows, columns) if self.cache.stores else None
        meter.store_bytes = store.num_bytes if store is not None else 0
        meter.start()
        status = canvas.settle(lockstep=False, at_eos="ignore")
        while status.unfinished:
            plan = self.cache.plan(canvas, status, self.model.spec)
            meter.count(plan)
            logits = self.model.forward(canvas.tokens.gather(1, plan.columns), plan, store)
            event = self._commit(canvas, plan, logits)
            status = canvas.settle(self.cache.lockstep, self._at_eos(plan))
            meter.end_of_step()
            yield event
            self._check(canvas, status)

    def _at_eos(self, plan: StepPlan) -> AtEnd:
        """Returns what an end token does after a pass.

        With a cache, rows are not cut after the refresh that begins a block (dInfer's rule).
        """
        if self.at_eos == "truncate" and self.cache.stores and plan.kind == "refresh":
            return "stop"
        return self.at_eos

    def _commit(self, canvas: Canvas, plan: StepPlan, logits: Tensor) -> StepEvent:
        window = canvas.window(plan.eligible)
        candidates = self.sampling.propose(logits, self.noise, window.columns, canvas.step)
        if plan.forced:
            decision = Decision(window.masked)
        else:
            decision = self.scheduler.decide(candidates, self._view(canvas, window))
        tokens = candidates.token if decision.tokens is None else decision.tokens
        steps = 1 if decision.num_steps is None else decision.num_steps
        canvas.commit(window, Commit(decision.commit, tokens, candidates.confidence, steps))
        return _event(plan, canvas, window, decision, candidates)

    def _view(self, canvas: Canvas, window: Window) -> View:
        return View(
            columns=window.columns,
            tokens=window.tokens,
            masked=window.masked,
            step=canvas.step,
            block_step=canvas.block_step,
            block_masks=canvas.block_masks,
            num_blocks=canvas.num_blocks,
            noise=self.noise,
        )

    def _check(self, canvas: Canvas, status: Status) -> None:
        if status.broken:
            rows = canvas.broken.nonzero().flatten().tolist()
            raise BrokenLogitsError(
                f"the model's logits hold NaN or infinity in row(s) {rows}; the weights or the "
                "dtype are the usual cause (try dtype='float32'); finished tokens were kept"
            )


def _event(
    plan: StepPlan, canvas: Canvas, window: Window, decision: Decision, candidates: Candidates
) -> StepEvent:
    return StepEvent(
        kind=plan.kind,
        columns=window.columns,
        tokens=canvas.tokens.gather(1, window.columns),
        committed=decision.commit,
        drafts=candidates.token,
        confidence=candidates.confidence,
    )
