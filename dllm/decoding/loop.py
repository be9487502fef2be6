"""The denoising loop: plan, forward, propose, decide, write; until every row is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dllm.cache import Cache
from dllm.decoding.batching import Admission, kept_for
from dllm.decoding.change import change_of, overruled
from dllm.decoding.forward import Forward
from dllm.decoding.head_rows import can_narrow, in_window, narrow_head
from dllm.decoding.observer import Observer, Pass
from dllm.decoding.prompt_memory import PromptMemory
from dllm.decoding.shadow import with_shadows
from dllm.metrics import Meter
from dllm.models.attention_maps import watch
from dllm.models.config import cost_of
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.schedulers import Needs, Scheduler, Setup, View
from dllm.schedulers.view import State, freeze
from dllm.state.candidates import Candidates, Sampling
from dllm.state.canvas import Canvas
from dllm.state.event import StepEvent, event_of
from dllm.state.noise import Noise
from dllm.state.plan import StepPlan
from dllm.state.settle import AtEnd, settle
from dllm.state.status import Feeds, Status, status_of
from dllm.state.store import KVStore
from dllm.state.variants import fan_out
from dllm.state.window import Window


class BrokenLogitsError(RuntimeError):
    """The model returned logits that are not numbers; `partial` is what was committed before."""

    partial: GenerationOutput | None = None


@dataclass(frozen=True)
class DenoisingLoop:
    """Any model, scheduler and cache, one step at a time.

    Host and device meet once a step, in `settle`.
    """

    model: DenoisingModel
    scheduler: Scheduler
    cache: Cache
    sampling: Sampling
    noise: Noise
    needs: Needs
    at_eos: AtEnd = "stop"
    memory: PromptMemory | None = None
    observer: Observer | None = None  # shown each pass before the step decides
    admission: Admission | None = None  # lets further prompts in; None: all are in the canvas

    @property
    def num_variants(self) -> int:
        """The most canvases of a row that one pass runs."""
        return self.needs.branches

    @torch.inference_mode()
    def run(self, canvas: Canvas, meter: Meter) -> Iterator[StepEvent]:
        """Denoises the canvas in place and yields what each step did."""
        state: State = {}
        forward = self._begin(canvas, meter)
        feeds, narrows = self._feeds, can_narrow(self.needs)
        status = settle(canvas, lockstep=False, at_eos="ignore", feeds=feeds)
        status, state = self._admit(canvas, status, forward, state)
        while status.unfinished:
            plan = self.cache.plan(canvas, status, self.model.spec)
            if self.needs.shadow:
                plan = with_shadows(plan, canvas)
            elif narrows:
                plan = narrow_head(plan, canvas, status)
            window, logits = self._pass(canvas, status, plan, forward, state)
            if self.observer is not None:
                shown = in_window(logits, plan, window.columns.shape[1])
                ran = (plan, shown, forward.store, self.needs.branches)
                self.observer(Pass(self.model, self.sampling, canvas, status, window, *ran))
            state = state or self._start(canvas, logits)
            event, state = self._step(canvas, window, plan, logits, state)
            before = status.finished
            status = settle(canvas, self.cache.lockstep, self._at_eos(plan), feeds)
            meter.end_of_step()
            yield self._named(event, before, status.finished)
            self._check(canvas, status)
            status, state = self._admit(canvas, status, forward, state)

    def _begin(self, canvas: Canvas, meter: Meter) -> Forward:
        """Makes the store and fills it with what is known or read before the first step."""
        forward = Forward(self.model, self._new_store(canvas), meter)
        meter.start(cost_of(self.model), 0 if forward.store is None else forward.store.num_bytes)
        canvas.skip_after_end = self.at_eos == "skip"
        if self.memory is not None and forward.store is not None:
            self.memory.recall(self.model, canvas, forward.store)
        for plan in self.cache.prefill(canvas, self.model.spec):
            forward(canvas.tokens, plan)
            canvas.read_prompt(plan.columns[:, -1] + 1)
        if self.admission is not None:
            self.admission.begin(self._feeds)
        return forward

    def _admit(
        self, canvas: Canvas, status: Status, forward: Forward, state: State
    ) -> tuple[Status, State]:
        """Lets waiting prompts into the places of finished rows, where the cache allows it."""
        if self.admission is None or not self.cache.admits(status):
            return status, state
        status, places = self.admission.enter(status)
        if places is None:
            return status, state
        self._restart(canvas, places)
        read = False
        for plan in kept_for(places, self.cache.prefill(canvas, self.model.spec), canvas):
            forward(canvas.tokens, plan)
            canvas.read_prompt(plan.columns[:, -1] + 1)
            read = True
        if read:  # less is left to feed
            status = status_of(canvas, self._feeds)
        return status, self.admission.restarted(state, places)

    def _restart(self, canvas: Canvas, places: Tensor) -> None:
        """Forgets what else was known of the rows at some places (n,)."""

    @property
    def _feeds(self) -> Feeds | None:
        """What counts the columns of the next pass, for caches that feed any."""
        return partial(self.cache.feeds, spec=self.model.spec) if self.cache.scattered else None

    def _named(
        self, event: StepEvent, before: tuple[bool, ...], after: tuple[bool, ...]
    ) -> StepEvent:
        """Returns the event with its prompts, of rows that were and are finished or not."""
        admission = self.admission
        prompts = tuple(range(len(after)) if admission is None else admission.occupants)
        ended: tuple[int, ...] = ()
        if before != after:  # in few steps
            every = zip(prompts, before, after, strict=True)
            ended = tuple(prompt for prompt, was, done in every if done and not was)
        return replace(event, prompts=prompts, finished=ended)

    def _pass(
        self, canvas: Canvas, status: Status, plan: StepPlan, forward: Forward, state: State
    ) -> tuple[Window, Tensor]:
        """Runs a planned pass, over all variants where there are any."""
        window = canvas.window(plan)
        if status.branching:
            logits = self._compare(canvas, window, plan, forward, state)
            window = canvas.window(plan, window.active)
        else:
            logits = forward(canvas.tokens, plan)
        if plan.maps:
            watch(canvas, plan, forward.store)
        return window, logits

    def _compare(
        self, canvas: Canvas, window: Window, plan: StepPlan, forward: Forward, state: State
    ) -> Tensor:
        """Runs a pass over all variants, keeps each row's best; returns its logits (B, W, V)."""
        branches, store = canvas.branches, forward.store
        assert branches is not None
        num_rows, count = branches.columns.shape
        first = torch.arange(num_rows, device=canvas.tokens.device) * count
        if store is not None:
            store.copy_rows(first.repeat_interleave(count))
        wide = fan_out(plan, count, canvas.layout.num_stored)
        logits = forward(branches.fill(canvas.tokens), wide)
        view = self._view(canvas, window, state).of_variants(branches.columns)
        own = logits[:, : window.columns.shape[1]]
        candidates = self.sampling.propose(own, self.noise, view.columns, view.step)
        score = self.scheduler.appraise(candidates, view, branches)
        winner = branches.pick(score, window.active)
        canvas.adopt(winner, window.active)
        if store is not None:
            store.copy_rows((first + winner).repeat_interleave(count))
            store.maps[:] = [attention[first + winner] for attention in store.maps]
        return logits[first + winner]

    def _step(
        self, canvas: Canvas, window: Window, plan: StepPlan, logits: Tensor, state: State
    ) -> tuple[StepEvent, State]:
        """Decides on logits (B, w, V), or (B, 2 W, V) with shadows, and writes the decision."""
        own = logits[:, : window.columns.shape[1]]
        candidates = self._propose(canvas, plan, own)
        if canvas.seen is not None:
            canvas.seen = canvas.seen.judged(window.columns, candidates.confidence, window.known)
            self._judge_extra(canvas, plan, logits[:, own.shape[1] :])
        view = self._view(canvas, window, state, self._shadow(logits, plan, candidates))
        decision, asked = self.scheduler.decide(candidates, view), window.active
        if plan.forced is not None:
            decision = overruled(decision, plan.forced, window, canvas, candidates)
            asked = asked & ~plan.forced
        canvas.fresh = canvas.fresh & ~asked
        canvas.apply(window, change_of(decision, candidates, canvas.layout.mask_token_id))
        if decision.announced is not None:
            canvas.announced = decision.announced
        if decision.branches is not None:
            old = canvas.branches or decision.branches
            canvas.branches = old.merge(decision.branches, window.active)
        if decision.state is not None:
            state = freeze(state, decision.state, asked)
        return event_of(plan, canvas, window, candidates), state

    def _propose(self, canvas: Canvas, plan: StepPlan, logits: Tensor) -> Candidates:
        """Returns the window's candidates from the logits (B, w, V) of a pass."""
        return self.sampling.propose(logits, self.noise, canvas.columns(), canvas.step, plan.places)

    def _judge_extra(self, canvas: Canvas, plan: StepPlan, logits: Tensor) -> None:
        """Notes the confidence of columns that the plan asks for beside those of the window."""
        if plan.extra is not None and canvas.seen is not None:
            logits = logits[:, : plan.extra.shape[1]]
            candidates = self.sampling.propose(logits, self.noise, plan.extra, canvas.step)
            canvas.seen = canvas.seen.judged(plan.extra, candidates.confidence)

    def _shadow(self, logits: Tensor, plan: StepPlan, candidates: Candidates) -> Candidates | None:
        if not plan.num_shadows:
            return None
        shadow = logits[:, -plan.num_shadows :].to(candidates.logits.dtype)
        return Candidates(shadow, candidates.token)

    def _view(
        self, canvas: Canvas, window: Window, state: State, shadow: Candidates | None = None
    ) -> View:
        return View(
            columns=window.columns,
            tokens=window.tokens,
            masked=window.masked,
            block=window.block,
            known=window.known,
            fixed=canvas.fixed.gather(1, window.columns),
            length=canvas.length,
            prompt_length=canvas.prompt_length,
            num_slots=canvas.num_slots,
            step=canvas.step,
            block_step=canvas.block_step,
            block_masks=canvas.block_masks,
            fresh=canvas.fresh,
            num_blocks=canvas.num_blocks,
            layout=canvas.layout,
            noise=self.noise,
            state=state,
            shadow=shadow,
        )

    def _new_store(self, canvas: Canvas) -> KVStore | None:
        if not self.cache.stores:
            return None
        rows = canvas.layout.num_rows * self.needs.branches
        store = self.model.new_store(rows, canvas.layout.num_stored)
        if self.observer is not None:
            store.keep_stamps()
        return store

    def _start(self, canvas: Canvas, logits: Tensor) -> State:
        layout = canvas.layout
        setup = Setup(
            num_rows=layout.num_rows,
            width=layout.width,
            num_slots=layout.num_slots,
            block_length=layout.block_length,
            vocab_size=logits.shape[-1],
            dtype=self.sampling.dtype,
            device=logits.device,
        )
        state = self.scheduler.start(setup)
        if self.admission is not None:
            self.admission.remember(state)
        return state

    def _at_eos(self, plan: StepPlan) -> AtEnd:
        """Returns what an end token does after a pass.

        With a cache, rows are not cut after the refresh that begins a block (dInfer's rule).
        """
        if self.at_eos == "truncate" and self.cache.stores and plan.kind == "refresh":
            return "stop"
        return self.at_eos

    def _check(self, canvas: Canvas, status: Status) -> None:
        if status.broken:
            rows = canvas.prompts[canvas.broken].tolist()
            raise BrokenLogitsError(
                f"the model's logits hold NaN or infinity in row(s) {rows}; the weights or the "
                "dtype are the usual cause (try dtype='float32'); finished tokens were kept"
            )
