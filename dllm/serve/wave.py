"""A canvas of rows with the same settings: rows enter and leave it between two steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

import torch

from dllm.assembly import Beside, loop_of, row_like
from dllm.compatible import check
from dllm.constraints.base import Constraint
from dllm.constraints.span import ConstraintSpan
from dllm.decoding.batching import Entering, OpenBatch, Opening
from dllm.decoding.prompt_memory import PromptMemory
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.output import Chosen, Write, collect, read_history
from dllm.serve.job import Answer, Counts, Drawn, Failure, Job, LateError, Piece
from dllm.serve.transcript import Transcript, more
from dllm.settings import Settings
from dllm.state.progress import Progress
from dllm.state.rows import release_rows
from dllm.state.window import StepEvent

_ROOM = 32  # columns: rows that are a little longer than those before still find room
# Between two steps, where some rows are not done, and a block may begin.
_BETWEEN = Progress(
    unfinished=True,
    entered=True,
    broken=False,
    remaining=1,
    length=1,
    reach=1,
    num_fed=0,
    comparing=False,
    block_forwards=0,
)
_STEPS = 10_000  # after which a canvas takes no more rows, so that its records stay small


class Wave:
    """Some jobs, decoded together; `step` runs one pass and tells each what it did."""

    def __init__(
        self,
        model: DenoisingModel,
        jobs: Sequence[Job],
        take: Callable[[Wave, int], list[Job]],
        counts: Counts,
        memory: PromptMemory,
    ) -> None:
        first = jobs[0]
        needed = max(job.num_columns for job in jobs)
        self.key, self.num_seats = first.key, len(jobs)
        self.num_columns = -(-needed // _ROOM) * _ROOM
        self.jobs = dict(enumerate(jobs))  # by number, those that are decoded
        self._model, self._take, self._counts = model, take, counts
        self._taken, self._steps, self._num_counted = len(jobs), 0, 0
        longest = max(job.settings.max_new_tokens for job in jobs)
        shared = replace(first.settings, max_new_tokens=longest, constraint=None)
        shared = replace(shared, seed=[job.seed for job in jobs])
        if first.key.constrained:
            shared = replace(shared, constraint=[_constraint(job) for job in jobs])
        opening = Opening(self.num_columns, self._enter)
        rows = [job.row for job in jobs]
        kept = memory if _suits(model, shared) else None
        self._loop, self._canvas = loop_of(model, rows, shared, Beside(kept, opening=opening))
        self._memory = kept
        self._seats = dict(enumerate(range(len(jobs))))  # of each number
        self._meter = Meter(model.device)
        self._changes: dict[int, list[Write]] = {}
        assert model.tokenizer is not None  # of every model that is served
        self._transcript = Transcript(
            model.tokenizer,
            model.spec.mask_token_id,
            self._canvas.layout.eos_token_ids,
            first.settings.stop,
        )
        self._events = self._loop.run(self._canvas, self._meter)
        for job in jobs:
            job.begun = job.begun or monotonic()

    @property
    def num_active(self) -> int:
        """Rows that are decoded."""
        return len(self.jobs)

    @property
    def admits(self) -> bool:
        """Whether rows may enter while others are decoded: the cache says, and it is not worn."""
        return self._steps < _STEPS and self._loop.cache.admits(_BETWEEN)

    def fits(self, job: Job) -> bool:
        """Whether a canvas has the columns and slots of a row."""
        return (
            job.num_columns <= self.num_columns and job.num_slots <= self._canvas.layout.num_slots
        )

    def broken(self) -> list[Job]:
        """Returns the jobs whose logits were not numbers."""
        wrong = self._canvas.broken.tolist()
        return [job for number, job in self.jobs.items() if wrong[self._seats[number]]]

    def step(self) -> bool:
        """Runs one pass; False once nobody is left.

        Raises BrokenLogitsError and NotEnoughMemoryError, with which the wave has ended.
        """
        self._release()
        event = next(self._events, None)
        if event is None:
            return False
        if self._memory is not None and not self._steps:
            self._batch.reused |= dict(enumerate(self._memory.reused))
        self._steps += 1
        self._count()
        if self._canvas.layout.keep_history:
            read_history(self._canvas, self._changes)
        self._tell(event)
        for number in event.finished:
            self._finish(number)
        return True

    @property
    def _batch(self) -> OpenBatch:
        assert isinstance(self._loop.batch, OpenBatch)
        return self._loop.batch

    def _count(self) -> None:
        """Counts a step, and the columns that its passes fed."""
        self._counts.forwards += 1
        fed = sum(self._meter.fed[self._num_counted :])
        self._num_counted = len(self._meter.fed)
        self._counts.fed += fed

    def _release(self) -> None:
        """Has rows leave that nobody waits for any more, or that took too long."""
        left = [number for number, job in self.jobs.items() if job.cancelled or job.late]
        if left:
            seats = [self._seats[number] for number in left]
            release_rows(self._canvas, torch.tensor(seats, device=self._model.device))
        for number in left:
            job = self._forget(number)
            if job.cancelled:
                self._counts.cancelled += 1
            else:
                self._counts.failed += 1
                job.tell(Failure(LateError(monotonic() - job.asked)))

    def _enter(self, num_free: int) -> list[Entering]:
        """Returns rows for free seats, as the loop asks for them."""
        entering = []
        taken = dict(enumerate(self._take(self, num_free), start=self._taken))
        self.jobs |= taken  # before anything can go wrong with one of them
        self._taken += len(taken)
        for number, job in taken.items():
            alone, languages = row_like(self._model, job.row, job.settings, self._canvas)
            if self._loop.constrained is not None:
                self._loop.constrained.adopt(number, languages)
            job.begun = job.begun or monotonic()
            entering.append(Entering(number, alone, job.seed))
        return entering

    def _tell(self, event: StepEvent) -> None:
        """Tells jobs of what this step did, where they asked for that."""
        self._seats = {number: seat for seat, number in enumerate(event.prompts)}
        told = [number for number, job in self.jobs.items() if job.pieces or job.drawn]
        if not told:
            return
        seats = torch.tensor([self._seats[number] for number in told], device=self._model.device)
        tokens = self._canvas.tokens[seats].tolist()
        steps = self._canvas.row_forwards[seats].tolist()
        for number, row, step in zip(told, tokens, steps, strict=True):
            job, start = self.jobs[number], len(self.jobs[number].row.prompt)
            if job.drawn:
                job.tell(self._drawn(event, self._seats[number], job, step))
            if job.pieces and not self._loop.scheduler.can_revise:
                self._tell_piece(job, self._transcript.final(row[start : start + job.num_open]))

    def _tell_piece(self, job: Job, text: str) -> None:
        """Tells a job of the text that it was not told of."""
        piece = more(job.told, text)
        if piece:
            job.told += piece
            job.tell(Piece(piece))

    def _drawn(self, event: StepEvent, seat: int, job: Job, step: int) -> Drawn:
        """Returns what a step did to one row."""
        start, text = len(job.row.prompt), self._transcript.token
        columns = [column - start for column in event.columns[seat].tolist()]
        places = {place: column for place, column in enumerate(columns) if column >= 0}
        tokens, drafts = event.tokens[seat].tolist(), event.drafts[seat].tolist()
        written, again = event.committed[seat].tolist(), event.remasked[seat].tolist()
        sure, mask = event.confidence[seat].tolist(), self._canvas.layout.mask_token_id
        places = {place: at for place, at in places.items() if at < job.num_open}
        return Drawn(
            step=step,
            committed=tuple(
                (at, tokens[place], text(tokens[place]))
                for place, at in places.items()
                if written[place]
            ),
            remasked=tuple(at for place, at in places.items() if again[place]),
            drafts=tuple(
                (at, drafts[place], text(drafts[place]), round(sure[place], 4))
                for place, at in places.items()
                if tokens[place] == mask and sure[place] == sure[place]
            ),
        )

    def _finish(self, number: int) -> None:
        """Tells a job its answer, before another row takes its seat."""
        if number not in self.jobs:
            return  # nobody waited for it
        reused = self._batch.reused.get(number, 0)
        job = self._forget(number)
        chosen = Chosen(self._canvas, [self._seats[number]], self._changes)
        out = collect(chosen, self._meter, self._model.tokenizer, self._loop.stop)
        self._changes.pop(number, None)
        start = len(job.row.prompt)
        tokens = self._transcript.cut(list(out.sequences[0][start : start + job.num_open]))
        text = self._transcript.text(tokens)
        if job.pieces:
            self._tell_piece(job, text)
        sure = out.trace.confidence[0][start : start + len(tokens)].tolist()
        begun = job.begun or job.asked
        self._counts.answered += 1
        job.tell(
            Answer(
                text=text,
                tokens=tuple(tokens),
                confidence=tuple(sure),
                row=out.metrics.rows[0],
                queued_seconds=begun - job.asked,
                decoding_seconds=monotonic() - begun,
                reused=reused,
                whole=isinstance(_constraint(job), Constraint),
            )
        )

    def _forget(self, number: int) -> Job:
        self._batch.reused.pop(number, None)
        return self.jobs.pop(number)


def _suits(model: DenoisingModel, settings: Settings) -> bool:
    """Whether what prompts have in common is read once."""
    _, cache = check(model, settings)
    return PromptMemory.suits(model, cache, settings.guidance_scale)


def _constraint(job: Job) -> Constraint | ConstraintSpan | None:
    assert not isinstance(job.settings.constraint, list)  # a job has one answer
    return job.settings.constraint
