"""A pass and the step that follows it: plain, or over variants of which the best goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dllm.cache import Cache
from dllm.decoding.languages.held import HeldRows, HeldWindow
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.schedulers import Needs, Scheduler, Setup
from dllm.state.candidates import Candidates, Sampling
from dllm.state.canvas import Canvas
from dllm.state.noise import Noise
from dllm.state.plan import PassShape, Saving, StepPlan
from dllm.state.processing import Processing
from dllm.state.progress import Progress
from dllm.state.rows import start_scheduler, text_of
from dllm.state.store import KVStore
from dllm.state.window import Layout, StepEvent, Window
from dllm.state.writing import apply

LOGIT_GROUP = 8  # logit rows: passes of the same number share a captured graph
# Rows of a product up to which a GPU waits for the weights: fewer rows of the head save nothing
# there, and would make shapes of their own for what is captured.
WEIGHT_BOUND = 128


@dataclass(frozen=True)
class Forward:
    """The model with its K/V store: one call is one pass, and is counted."""

    model: DenoisingModel
    store: KVStore | None
    meter: Meter

    def __call__(self, tokens: Tensor, plan: StepPlan) -> Tensor:
        """Returns the logits (B, w, V) of a pass over canvas tokens (B, C)."""
        self.count(plan)
        return self.feed(tokens.gather(1, plan.positions), plan)

    def feed(self, fed: Tensor, plan: StepPlan) -> Tensor:
        """Returns the logits of a pass, which the caller has counted, over fed tokens (B, Q)."""
        return self.model.forward(fed, plan, self.store)

    def count(self, plan: StepPlan, num_canvases: int = 1) -> None:
        """Counts a pass that feeds so many canvases of each row, one behind the other."""
        rows, fed = plan.positions.shape
        stored = fed if plan.stored is None else plan.stored.shape[1]
        logits = plan.logit_rows.shape[1]
        policy = plan.policy  # a shape holds numbers alone: it outlives the pass
        layers = (False, Saving()) if policy is None else (policy.whole_layer, policy.saving(fed))
        more = (plan.num_keys, stored, logits, *layers, num_canvases)
        self.meter.passes.append(PassShape(plan.kind, rows, fed, *more))


@dataclass(frozen=True)
class PassResult:
    """What a pass gave."""

    plan: StepPlan
    logits: Tensor  # (B, w, V), with those of `plan.policy.further` behind
    store: KVStore | None = None  # as the pass left it
    shadow: Tensor | None = None  # (B, W, V) of the window's columns read without themselves
    spare: bool = False  # nobody else reads the logits


@dataclass(frozen=True)
class PassRecord:
    """One pass and the state of everything before its step; none of it may be changed."""

    model: DenoisingModel  # with guidance, if there is any
    sampling: Sampling
    canvas: Canvas  # as the pass saw it; where variants were compared, with the best written
    progress: Progress  # from which the pass was planned
    window: Window
    plan: StepPlan  # for one variant of each row
    logits: Tensor  # (B, W, V), 0 where a pass gives none; more rows follow with shadows
    store: KVStore | None  # keeps stamps
    num_variants: int  # rows of the store for each row of the batch
    num_shadows: int = 0  # of the last fed columns, which hold the mask token


Observer = Callable[[PassRecord], None]


@dataclass(frozen=True)
class Step:
    """What follows a pass: proposes tokens, asks the scheduler, writes its decision."""

    scheduler: Scheduler
    cache: Cache
    sampling: Sampling
    noise: Noise
    processing: Processing | None = None  # of logits, before anything is proposed
    constrained: HeldRows | None = None  # languages that rows must be in

    def take(self, canvas: Canvas, window: Window, result: PassResult) -> StepEvent:
        """Decides on what a pass gave, and writes the decision."""
        plan, logits, further = result.plan, result.logits, None
        sets = self._sets(canvas, result.spare)
        if canvas.scheduler_state is None:
            start_scheduler(canvas, self.scheduler.start(self._setup(canvas, logits)))
        if plan.policy is not None and (columns := plan.policy.further) is not None:
            own = logits.shape[1] - columns.shape[1]
            logits, more = logits[:, :own], logits[:, own:]
            more = self.processed(more, columns, canvas)
            further = self.sampling.propose(more, self.noise, columns, canvas.step)
        if canvas.gap is not None:
            logits = self.scheduler.allowed(logits, canvas.view(window, self.noise))
        candidates, shadow = self.propose(canvas, plan, logits, sets), None
        if result.shadow is not None:
            alone = self.processed(result.shadow, window.columns, canvas)
            alone = alone if sets is None else sets.held(alone, None, self.sampling.dtype)
            shadow = Candidates(alone.to(candidates.logits.dtype), candidates.token)
        if self.cache.watches:
            canvas.note_pass(self.cache.watch(canvas, plan, result.store, candidates, further))
        decision = self.scheduler.decide(candidates, canvas.view(window, self.noise, shadow))
        if sets is not None:
            window, decision = sets.settle(window, decision, candidates)
        return apply(canvas, window, decision, candidates)

    def propose(
        self, canvas: Canvas, plan: StepPlan, logits: Tensor, sets: HeldWindow | None = None
    ) -> Candidates:
        """Returns the window's candidates from the logits (B, w, V) of a pass.

        `sets` are those of the canvas; None: they are made here.
        """
        columns, places = canvas.columns(), plan.logit_columns
        if self.processing is not None:
            at = columns if places is None else columns.gather(1, places)
            logits = self.processed(logits, at, canvas)
        sets = self._sets(canvas) if sets is None else sets
        if sets is not None:
            logits = sets.held(logits, places, self.sampling.dtype)
        proposed = self.sampling.propose(logits, self.noise, columns, canvas.step, places)
        return proposed if sets is None else sets.chosen(proposed, logits)

    def _sets(self, canvas: Canvas, spare: bool = False) -> HeldWindow | None:
        """Returns what columns may hold; None: anything."""
        return None if self.constrained is None else self.constrained.sets(canvas, spare)

    def processed(self, logits: Tensor, columns: Tensor, canvas: Canvas) -> Tensor:
        """Returns the logits (B, w, V) of columns (B, w) as the call's own rules leave them."""
        if self.processing is None:
            return logits
        return self.processing(logits.to(self.sampling.dtype), columns, text_of(canvas))

    def _setup(self, canvas: Canvas, logits: Tensor) -> Setup:
        layout = canvas.layout
        return Setup(
            num_rows=layout.num_rows,
            width=layout.width,
            num_slots=layout.num_slots,
            block_length=layout.block_length,
            vocab_size=logits.shape[-1],
            dtype=self.sampling.dtype,
            device=logits.device,
        )


class Passes(Protocol):
    """Runs a planned pass and takes the steps that its logits allow."""

    @property
    def num_variants(self) -> int:
        """The most canvases of a row that one pass runs."""
        ...

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        """Returns what the steps wrote into the canvas."""
        ...


@dataclass(frozen=True)
class PlainPasses:
    """One pass, one step."""

    step: Step
    narrows: bool = False  # logits of masked columns alone serve the scheduler
    observer: Observer | None = None  # shown each pass before its step

    num_variants = 1

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        if self.narrows:
            plan = keep_logits(plan, canvas, progress)
        window = canvas.window(plan, together=progress.together)
        spare, logits = self.observer is None, forward(canvas.tokens, plan)
        result = PassResult(plan, logits, forward.store, spare=spare)
        if self.observer is not None:
            self.observer(self.record(canvas, window, result, progress, forward.model))
        return self.step.take(canvas, window, result)

    def record(
        self,
        canvas: Canvas,
        window: Window,
        result: PassResult,
        progress: Progress,
        model: DenoisingModel,
    ) -> PassRecord:
        """Returns what an observer is shown of a pass."""
        logits = in_window(result.logits, result.plan, window.columns.shape[1])
        moment = (self.step.sampling, canvas, progress, window, result.plan, logits, result.store)
        return PassRecord(model, *moment, self.num_variants)


def can_narrow(needs: Needs, layout: Layout, device: torch.device) -> bool:
    """Whether logits of masked columns alone serve a scheduler, and computing no others pays."""
    wide = needs.whole_block or needs.committed or needs.distributions
    few = device.type == "cuda" and layout.num_rows * layout.window_length <= WEIGHT_BOUND
    return not (wide or needs.shadow or needs.num_variants > 1 or few)


def keep_logits(plan: StepPlan, canvas: Canvas, progress: Progress) -> StepPlan:
    """Returns the plan with logits of masked columns alone, which are those that it calls known.

    In most steps most of a block is committed already, and a row of logits costs as much as
    vocabulary times width. Rows are as many as the row with the most masks needs, in groups.
    """
    policy, width = plan.policy, plan.logit_rows.shape[1]
    count = -(-progress.num_open // LOGIT_GROUP) * LOGIT_GROUP
    if canvas.layout.region_length:
        if canvas.layout.skip_after_end:
            return plan  # who sees the whole row sees masks behind an end, which are not open
        count = min(count, plan.positions.shape[1])  # most of a row may not be fed
    if count >= width or (policy is not None and policy.keeps_weights):
        return plan
    wanted = canvas.open_columns()
    if plan.known is not None:
        wanted = wanted & plan.known
    columns = wanted.sort(dim=1, descending=True, stable=True).indices[:, :count]
    logit_rows = plan.logit_rows.gather(1, columns)
    return replace(plan, logit_rows=logit_rows, logit_columns=columns, known=wanted)


def in_window(logits: Tensor, plan: StepPlan, width: int) -> Tensor:
    """Returns the logits (B, w, V) of a pass at the columns of the window, (B, W, V); else 0."""
    if plan.logit_columns is None:
        return logits
    at = plan.logit_columns[..., None].expand_as(logits)
    return logits.new_zeros(logits.shape[0], width, logits.shape[2]).scatter(1, at, logits)
