"""The denoising loop: plan, pass, step, settle; until every row is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import torch

from dllm.cache import Cache
from dllm.decoding.batching import Batch, OpenBatch
from dllm.decoding.languages.held import HeldRows
from dllm.decoding.memory_limits import (
    GUARDED,
    Demand,
    NotEnoughMemoryError,
    in_use,
    ran_out,
)
from dllm.decoding.passes import Forward, Passes
from dllm.decoding.prompt_memory import PromptMemory
from dllm.metrics import Meter
from dllm.models.cost import cost_of
from dllm.models.model import DenoisingModel
from dllm.output import GenerationOutput
from dllm.schedulers import Scheduler
from dllm.state.canvas import Canvas
from dllm.state.progress import AtEnd, Feeds, Progress, progress_of, settle
from dllm.state.rows import read_prompt
from dllm.state.stopping import StopStrings
from dllm.state.store import KVStore
from dllm.state.window import StepEvent


class BrokenLogitsError(RuntimeError):
    """The model returned logits that are not numbers; `partial` is what was committed before."""

    partial: GenerationOutput | None = None


@dataclass(frozen=True)
class DenoisingLoop:
    """Any model, scheduler and cache, one step at a time.

    Host and device meet once a step, in `settle`; with stop strings once more.
    """

    model: DenoisingModel
    scheduler: Scheduler
    cache: Cache
    passes: Passes
    store_variants: int = 1  # rows of the store for each row of the batch
    at_eos: AtEnd = "stop"
    refreshes: bool = False  # the first pass of a block cuts no row off, see `Cache.refreshes`
    memory: PromptMemory | None = None
    batch: Batch | None = None  # lets further prompts in; None: all are in the canvas
    stop: StopStrings | None = None  # texts that end a row
    constrained: HeldRows | None = None  # languages that rows must be in
    keep_stamps: bool = False  # the store notes when each slot was written
    reads: Feeds | None = None  # the columns that passes read beside what a cache plans
    sampled: bool = False  # tokens are drawn, which takes more memory

    @torch.inference_mode()
    def run(self, canvas: Canvas, meter: Meter) -> Iterator[StepEvent]:
        """Denoises the canvas in place and yields what each step did.

        Raises BrokenLogitsError, and NotEnoughMemoryError where memory runs out.
        """
        demand = self._demand(canvas, meter)
        try:
            yield from self._steps(canvas, meter)
            return
        except GUARDED as error:
            if not ran_out(error):
                raise
            reason = str(error).strip().split("\n")[0]
        # Outside the handler: the error that was caught holds the frames, and so the tensors, of
        # the pass that failed, and what they free can be used for what comes next.
        raise NotEnoughMemoryError(demand.explain(reason))

    def _steps(self, canvas: Canvas, meter: Meter) -> Iterator[StepEvent]:
        forward, feeds = self._begin(canvas, meter), self._feeds
        progress = settle(canvas, lockstep=False, at_eos="ignore", feeds=feeds)
        progress = self._admit(canvas, progress, forward)
        self._seat(canvas, progress, meter)
        while progress.unfinished:
            if self.constrained is not None:
                self.constrained.enter(canvas, progress, self._prompts(canvas))
            plan = self.cache.plan(canvas, progress, self.model.spec)
            event = self.passes(canvas, plan, progress, forward)
            before = progress.finished
            if self.stop is not None:
                self.stop.end_rows(canvas)
            lockstep = self.cache.lockstep
            progress = settle(canvas, lockstep, self.at_eos, feeds, self.refreshes)
            if meter.first_pass is None:  # host and device have just met
                meter.first_pass = perf_counter()
            yield self._named(canvas, event, before, progress)
            self._check(canvas, progress)
            settled, progress = progress, self._admit(canvas, progress, forward)
            if progress is not settled or settled.finished != before:
                self._seat(canvas, progress, meter)

    def _seat(self, canvas: Canvas, progress: Progress, meter: Meter) -> None:
        """Tells the meter which rows are under way, where their lengths are known."""
        if isinstance(self.batch, OpenBatch) or not progress.unfinished:
            return
        rows = zip(self._prompts(canvas), progress.finished, strict=True)
        lengths = [canvas.layout.lengths[prompt] for prompt, done in rows if not done]
        meter.seat(canvas.layout.num_rows, lengths, canvas.layout.num_spare)

    def _begin(self, canvas: Canvas, meter: Meter) -> Forward:
        """Makes the store and fills it with what is known or read before the first step."""
        forward = Forward(self.model, self._new_store(canvas), meter)
        meter.start(cost_of(self.model), 0 if forward.store is None else forward.store.num_bytes)
        if self.batch is not None:
            self.batch.begin(self._feeds, forward.store)
        if self.memory is not None and forward.store is not None:
            self.memory.recall(self.model, canvas, forward.store)
        for plan in self.cache.prefill(canvas, self.model.spec):
            forward(canvas.tokens, plan)
            read_prompt(canvas, plan.positions[:, -1] + 1)
        return forward

    def _admit(self, canvas: Canvas, progress: Progress, forward: Forward) -> Progress:
        """Lets waiting prompts into the seats of finished rows, where the cache allows it."""
        if self.batch is None:
            return progress
        if not self.cache.admits(progress):
            return self.batch.leave(progress)
        progress, seats = self.batch.enter(progress)
        if seats is None:
            return progress
        entered = torch.zeros_like(canvas.finished).index_fill(0, seats, True)[:, None]
        read = False
        for plan in self.cache.prefill(canvas, self.model.spec):
            assert plan.stored is not None
            forward(canvas.tokens, replace(plan, stored=plan.stored.where(entered, -1)))
            read_prompt(canvas, plan.positions[:, -1] + 1)
            read = True
        return progress_of(canvas, self._feeds) if read else progress  # less is left to feed

    @property
    def _feeds(self) -> Feeds | None:
        """What counts the columns of the next pass, for caches that feed any."""
        if not self.cache.names_columns:
            return self.reads
        return self.cache.counting(self.model.spec)

    def _new_store(self, canvas: Canvas) -> KVStore | None:
        if not self.cache.uses_store:
            return None
        rows = canvas.layout.num_rows if self.batch is None else self.batch.num_seats
        rows *= self.store_variants
        store = self.model.new_store(rows, canvas.layout.num_stored)
        if self.keep_stamps:
            store.keep_stamps()
        return store

    def _prompts(self, canvas: Canvas) -> tuple[int, ...]:
        """Returns the prompt at each seat."""
        return tuple(range(canvas.layout.num_rows)) if self.batch is None else self.batch.prompts

    def _named(
        self, canvas: Canvas, event: StepEvent, before: tuple[bool, ...], progress: Progress
    ) -> StepEvent:
        """Returns the event with its prompts and what it ended; `before` it, who was finished."""
        prompts, after = self._prompts(canvas), progress.finished
        left = max(progress.remaining - canvas.layout.window_length, 0) + progress.num_open
        ended: tuple[int, ...] = ()
        if before != after:  # in few steps
            rows = zip(prompts, before, after, strict=True)
            ended = tuple(prompt for prompt, was, done in rows if done and not was)
        return replace(event, prompts=prompts, finished=ended, left=left)

    def _check(self, canvas: Canvas, progress: Progress) -> None:
        if progress.broken:
            rows = canvas.prompts[canvas.broken].tolist()
            raise BrokenLogitsError(
                f"the model's logits hold NaN or infinity in row(s) {rows}; the weights or the "
                "dtype are the usual cause (try dtype='float32'); finished tokens were kept"
            )

    def _demand(self, canvas: Canvas, meter: Meter) -> Demand:
        variants = (self.store_variants, self.passes.num_variants)
        wanted = (self.cache.uses_store, *variants, canvas.layout, meter)
        return Demand(self.model, *wanted, before=in_use(meter.device), sampled=self.sampled)
