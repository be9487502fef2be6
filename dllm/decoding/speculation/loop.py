"""Draft and verify: several schedule steps in one pass, and the canvas they end in is the same."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from dllm.decoding.forward import Forward
from dllm.decoding.loop import DenoisingLoop
from dllm.decoding.speculation.execution import EXECUTIONS
from dllm.decoding.speculation.guard import is_steady
from dllm.decoding.speculation.known import Known
from dllm.decoding.speculation.verifiers import Verifier
from dllm.decoding.speculation.verifiers.ssd import SelfSpeculative
from dllm.schedulers.view import State
from dllm.state.canvas import Canvas
from dllm.state.drafts import next_match, no_drafts
from dllm.state.event import StepEvent
from dllm.state.plan import StepPlan
from dllm.state.settle import end_rows
from dllm.state.status import Status
from dllm.state.window import Window


@dataclass(frozen=True)
class VerifiedLoop(DenoisingLoop):
    """A loop whose passes run a row's canvas and those that its next steps are expected to give.

    After a pass the scheduler takes its steps as it always does, one after the other, for as long
    as the canvas that a step leaves is among those that were run: their logits are then at hand.
    So every decision is made on the logits of the very canvas it changes, and a draft that was
    wrong costs rows of a pass but changes nothing. `canvas.step` counts schedule steps, which
    noise and quotas go by; `canvas.drafts.passes` counts forwards.
    """

    verifier: Verifier = field(default_factory=SelfSpeculative)

    @property
    def num_variants(self) -> int:
        return 1 if self.verifier.execution == "sequential" else self.verifier.num_variants

    def _pass(
        self, canvas: Canvas, status: Status, plan: StepPlan, forward: Forward, state: State
    ) -> tuple[Window, Tensor]:
        """Runs a planned pass over all drafted canvases; logits are (B * n, W, V)."""
        if canvas.drafts is None:
            canvas.drafts = no_drafts(canvas.tokens, self.verifier)
        drafts = canvas.drafts
        if status.num_variants == 1:
            drafts.shared = False
            return super()._pass(canvas, status, plan, forward, state)
        count = status.num_variants
        if forward.store is not None and self.verifier.execution == "batch":
            count = next(n for n in range(count, drafts.most + 1) if drafts.most % n == 0)
            if not drafts.shared:
                drafts.share(forward.store)
            drafts.shared = count == drafts.most
        run = EXECUTIONS[self.verifier.execution]
        return canvas.window(plan), run(drafts.variants(canvas.tokens, count), plan, forward)

    def _restart(self, canvas: Canvas, places: Tensor) -> None:
        if canvas.drafts is not None:
            fresh = no_drafts(canvas.tokens, self.verifier)
            canvas.drafts = canvas.drafts.restarted(fresh, places)

    def _step(
        self, canvas: Canvas, window: Window, plan: StepPlan, logits: Tensor, state: State
    ) -> tuple[StepEvent, State]:
        """Takes every step whose logits are at hand, then drafts those after them."""
        drafts = canvas.drafts
        assert drafts is not None
        logits = logits.unflatten(0, (canvas.layout.num_rows, -1))
        count, rows = logits.shape[1], torch.arange(logits.shape[0], device=logits.device)
        variants, place = drafts.variants(canvas.tokens, count), torch.zeros_like(rows)
        steps, spent = canvas.step.clone(), canvas.row_forwards.clone()
        begun, guarded = _Bounds.of(canvas), count > 1 and self.verifier.margin_guard > 0
        now = self._steady(canvas, window, plan, logits[:, 0], state) if guarded else window
        event, state = super()._step(canvas, now, plan, logits[:, 0], state)
        going, doubted = now.active, window.active & ~now.active
        ready = self._ready(canvas, plan, begun)
        for _ in range(1, count):
            match, found = next_match(canvas.tokens, variants, place)
            going = ready & going & found
            place = torch.where(going, match, place)
            now, held = canvas.window(plan, going), logits[rows, place]
            now = self._steady(canvas, now, plan, held, state) if guarded else now
            later, state = super()._step(canvas, now, plan, held, state)
            event = _joined(event, later, canvas, window, now.active)
            going, doubted = now.active, doubted | (going & ~now.active)
            ready = self._ready(canvas, plan, begun)
        canvas.row_forwards = spent + torch.where(window.active, drafts.count, 0)
        drafts.note(window.active, canvas.step - steps, self.verifier.adaptive)
        self._draft(canvas, plan, logits[rows, place], ready & window.active & ~doubted)
        if guarded:  # the next pass is one without drafts, with the shapes that the base has
            drafts.count = torch.where(doubted.any(), 1, drafts.count)
        return event, state

    def _steady(
        self, canvas: Canvas, window: Window, plan: StepPlan, logits: Tensor, state: State
    ) -> Window:
        """Returns the window without the rows that would decide otherwise on similar logits."""
        candidates = self._propose(canvas, plan, logits)
        view, guard = self._view(canvas, window, state), self.verifier.margin_guard
        active = window.active & is_steady(self.scheduler, candidates, view, guard)
        return replace(window, active=active, masked=window.masked & active[:, None])

    def _draft(self, canvas: Canvas, plan: StepPlan, logits: Tensor, ready: Tensor) -> None:
        """Notes the canvases that rows `ready` (B,) pass through if no logits (B, W, V) change."""
        drafts, draft = canvas.drafts, canvas.copy()
        assert drafts is not None
        steps = {own.name: getattr(self, own.name) for own in fields(DenoisingLoop)}
        if self.sampling.temperature == 0:  # with noise, each step draws anew
            proposed = self._propose(canvas, plan, logits)
            steps["sampling"] = Known(**vars(self.sampling), candidates=proposed)
        base, begun = DenoisingLoop(**steps), _Bounds.of(canvas)
        plan = replace(plan, forced=None, eligible=None)  # they are about the pass that was run
        tokens, count = [draft.tokens.clone()], torch.ones_like(drafts.count)
        for place in range(1, drafts.most):
            base._step(draft, draft.window(plan, ready), plan, logits, {})
            ready = ready & self._ready(draft, plan, begun) & (drafts.limit > place)
            tokens.append(draft.tokens.clone())
            count = count + ready
        drafts.tokens, drafts.count = torch.stack(tokens, 1), count

    def _ready(self, canvas: Canvas, plan: StepPlan, begun: _Bounds) -> Tensor:
        """Ends complete rows; returns which rows the same pass, run again, would serve, (B,) bool.

        Those with masks in the block that they began with.
        """
        end_rows(canvas, self._at_eos(plan))
        return canvas.active & ~canvas.broken & begun.same(canvas)


def verified(loop: DenoisingLoop, verifier: Verifier) -> VerifiedLoop:
    """Returns a loop that does what another does in fewer forwards."""
    given = {own.name: getattr(loop, own.name) for own in fields(DenoisingLoop)}
    if verifier.execution == "batch":
        given["needs"] = replace(loop.needs, branches=verifier.num_variants)
    return VerifiedLoop(**given, verifier=verifier)


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


def _joined(
    event: StepEvent, later: StepEvent, canvas: Canvas, window: Window, going: Tensor
) -> StepEvent:
    """Returns what the steps of one pass did together; `going` (B,) took part in the later one."""
    wide = going[:, None]
    tokens = canvas.tokens.gather(1, window.columns)
    written = (tokens != window.tokens) & (tokens != canvas.layout.mask_token_id)
    return replace(
        event,
        tokens=tokens,
        committed=written,
        drafts=torch.where(wide, later.drafts, event.drafts),
        confidence=torch.where(wide, later.confidence, event.confidence),
    )
