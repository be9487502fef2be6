"""Draft and verify: several schedule steps in one pass, and the canvas they end in is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dllm.decoding.passes import Forward, PassResult, PlainPasses, Step, keep_logits
from dllm.decoding.speculation.execution import EXECUTIONS
from dllm.decoding.speculation.verifiers import StepVerifier
from dllm.schedulers import Scheduler, View
from dllm.state.candidates import Candidates, Sampling
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import AtEnd, Progress, end_rows
from dllm.state.rows import copied, count_drafts
from dllm.state.variants import next_match
from dllm.state.window import StepEvent, Window


@dataclass(frozen=True)
class VerifiedPasses:
    """Passes that run a row's canvas and those that its next steps are expected to give.

    After a pass the scheduler takes its steps as it always does, one after the other, for as long
    as the canvas that a step leaves is among those that were run: their logits are then at hand.
    So every decision is made on the logits of the very canvas it changes, and a draft that was
    wrong costs rows of a pass but changes nothing. `canvas.step` counts schedule steps, which
    noise and quotas go by; `canvas.drafts.passes` counts forwards.
    """

    plain: PlainPasses
    verifier: StepVerifier
    at_eos: AtEnd  # what an end token does
    refreshes: bool  # the first pass of a block cuts no row off, see `Cache.refreshes`

    @property
    def num_variants(self) -> int:
        return 1 if self.verifier.execution == "sequential" else self.verifier.num_variants

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        if self.plain.narrows:
            plan = keep_logits(plan, canvas, progress)
        window, logits = self._run(canvas, plan, progress, forward)
        return self.take(canvas, window, plan, logits)

    def _run(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> tuple[Window, Tensor]:
        """Runs a planned pass over all drafted canvases; logits are (B * n, W, V)."""
        drafts, count = canvas.drafts, progress.num_variants
        assert drafts is not None
        if count == 1:
            drafts.shared = False
            return canvas.window(plan), forward(canvas.tokens, plan)
        if forward.store is not None and self.verifier.execution == "batch":
            count = next(n for n in range(count, drafts.most + 1) if drafts.most % n == 0)
            if not drafts.shared:
                drafts.share(forward.store)
            drafts.shared = count == drafts.most
        run = EXECUTIONS[self.verifier.execution]
        return canvas.window(plan), run(drafts.variants(canvas.tokens, count), plan, forward)

    def take(self, canvas: Canvas, window: Window, plan: StepPlan, logits: Tensor) -> StepEvent:
        """Takes every step whose logits are at hand, then drafts those after them."""
        drafts, step = canvas.drafts, self.plain.step
        assert drafts is not None
        logits = logits.unflatten(0, (canvas.layout.num_rows, -1))
        count, rows = logits.shape[1], torch.arange(logits.shape[0], device=logits.device)
        variants, place = drafts.variants(canvas.tokens, count), torch.zeros_like(rows)
        steps, forwards = canvas.step.clone(), canvas.row_forwards.clone()
        begun, guarded = _Bounds.of(canvas), count > 1 and self.verifier.margin_guard > 0
        now = self._steady(canvas, window, plan, logits[:, 0]) if guarded else window
        event = step.take(canvas, now, PassResult(plan, logits[:, 0]))
        going, doubted = now.active, window.active & ~now.active
        ready = self._ready(canvas, plan, begun)
        for _ in range(1, count):
            match, matches = next_match(canvas.tokens, variants, place)
            going = ready & going & matches
            place = torch.where(going, match, place)
            now, own = canvas.window(plan, going), logits[rows, place]
            now = self._steady(canvas, now, plan, own) if guarded else now
            later = step.take(canvas, now, PassResult(plan, own))
            event = _joined(event, later, now.active)
            going, doubted = now.active, doubted | (going & ~now.active)
            ready = self._ready(canvas, plan, begun)
        count_drafts(canvas, window.active, steps, forwards)
        self._draft(canvas, plan, logits[rows, place], ready & window.active & ~doubted)
        if guarded:  # the next pass is one without drafts, with the shapes that the base has
            drafts.expect(drafts.tokens, torch.where(doubted.any(), 1, drafts.count))
        return event

    def _steady(self, canvas: Canvas, window: Window, plan: StepPlan, logits: Tensor) -> Window:
        """Returns the window without the rows that would decide otherwise on similar logits."""
        step = self.plain.step
        candidates, view = step.propose(canvas, plan, logits), canvas.view(window, step.noise)
        guard = self.verifier.margin_guard
        return window.of_active(is_steady(step.scheduler, candidates, view, guard))

    def _draft(self, canvas: Canvas, plan: StepPlan, logits: Tensor, ready: Tensor) -> None:
        """Notes the canvases that rows `ready` (B,) pass through if no logits (B, W, V) change."""
        drafts, draft, step = canvas.drafts, copied(canvas), self._drafting(canvas, plan, logits)
        assert drafts is not None
        begun = _Bounds.of(canvas)
        plan = replace(plan, forced=None, eligible=None)  # they are about the pass that was run
        tokens, count = [draft.tokens.clone()], torch.ones_like(drafts.count)
        for number in range(1, drafts.most):
            step.take(draft, draft.window(plan, ready), PassResult(plan, logits))
            ready = ready & self._ready(draft, plan, begun) & (drafts.limit > number)
            tokens.append(draft.tokens.clone())
            count = count + ready
        drafts.expect(torch.stack(tokens, 1), count)

    def _drafting(self, canvas: Canvas, plan: StepPlan, logits: Tensor) -> Step:
        """Returns the step that drafts: without noise, it proposes the same each time."""
        step = self.plain.step
        if step.sampling.temperature > 0 or step.constrained is not None:
            return step  # each step draws anew, or among fewer tokens
        known = Known(**vars(step.sampling), candidates=step.propose(canvas, plan, logits))
        return replace(step, sampling=known)

    def _ready(self, canvas: Canvas, plan: StepPlan, begun: _Bounds) -> Tensor:
        """Ends complete rows; returns which rows the same pass, run again, would serve, (B,) bool.

        Those with masks in the block that they began with.
        """
        end_rows(canvas, self.at_eos, self.refreshes)
        return canvas.active & ~canvas.broken & begun.same(canvas)


@dataclass(frozen=True)
class _Bounds:
    """What passes are planned by, besides the tokens."""

    length: Tensor  # (B,) int64
    block_end: Tensor  # (B,) int64

    @classmethod
    def of(cls, canvas: Canvas) -> _Bounds:
        """Returns those of a canvas."""
        return cls(canvas.length, canvas.block_end)

    def same(self, canvas: Canvas) -> Tensor:
        """Returns whose bounds are still these, (B,) bool."""
        return (canvas.length == self.length) & (canvas.block_end == self.block_end)


def _joined(event: StepEvent, later: StepEvent, going: Tensor) -> StepEvent:
    """Returns what the steps of one pass did together; `going` (B,) took part in the later one.

    What an end token filled between two of them was committed by neither.
    """
    wide = going[:, None]
    return replace(
        event,
        tokens=torch.where(later.committed, later.tokens, event.tokens),
        drafts=torch.where(wide, later.drafts, event.drafts),
        confidence=torch.where(wide, later.confidence, event.confidence),
    )


@dataclass(frozen=True)
class Known(Sampling):
    """Candidates that are known already: without noise each step proposes the same."""

    candidates: Candidates | None = None

    def propose(self, *_: Any) -> Candidates:
        assert self.candidates is not None
        return self.candidates


def is_steady(scheduler: Scheduler, candidates: Candidates, view: View, guard: float) -> Tensor:
    """Returns which rows decide the same if logits are a little different, (B,) bool.

    A row does if every token that it commits is more probable than the second best by `guard`, no
    column that it commits is within `guard` of the confidence of one that it leaves, and it
    commits the same columns with all logits `guard` times larger or smaller. The last is what
    tells how near a threshold is; bfloat16 rounds a logit by up to 0.4 % of it.
    """
    commit = scheduler.decide(candidates, view).commit
    left = view.masked & view.known & ~commit
    sure = ((candidates.margin >= guard) | ~commit).all(1)
    confidence = candidates.confidence
    near = (confidence[:, :, None] - confidence[:, None]).abs() < guard
    apart = ~(near & commit[:, :, None] & left[:, None]).flatten(1).any(1)
    return sure & apart & _same(scheduler, candidates, view, commit, guard)


def _same(
    scheduler: Scheduler, candidates: Candidates, view: View, commit: Tensor, guard: float
) -> Tensor:
    same = torch.ones_like(commit[:, 0])
    for factor in (1 - guard, 1 + guard):
        raw = None if candidates.raw is None else candidates.raw * factor
        # What a kernel measured is of the logits as they were, in whatever dtype.
        own = candidates.logits if candidates.measured is None else candidates.logits.float()
        logits = own * (factor / candidates.heat)
        moved = replace(candidates, logits=logits, raw=raw, measured=None, heat=1.0, chunks=None)
        same = same & (scheduler.decide(moved, view).commit == commit).all(1)
    return same
