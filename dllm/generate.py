"""The front door: `generate` returns finished rows, `stream` yields them step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dllm.assembly import admitting, loop_of, needs_of
from dllm.compatible import check
from dllm.decoding.batching import Admission
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError, Request
from dllm.decoding.observer import Observer
from dllm.decoding.prompt_memory import PromptMemory
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.new_canvas import block_length_of, canvas_of
from dllm.output import (
    Chosen,
    GenerationInterrupted,
    GenerationOutput,
    Write,
    collect,
    read_history,
)
from dllm.prompts import Infill, Prompts, Row, encode_all
from dllm.settings import Settings, resolve
from dllm.state.canvas import Canvas
from dllm.state.event import StepEvent


def generate(
    model: DenoisingModel,
    prompts: Prompts,
    settings: Settings | None = None,
    *,
    memory: PromptMemory | None = None,
    **given: Any,
) -> GenerationOutput:
    """Returns the completed rows of a batch of prompts.

    `prompts` is a text, chat messages, token ids, an `Infill`, or a list of one of them. Further
    settings are the fields of `Settings`; names from the literature (`gen_length`, `block_size`,
    `remasking`, `steps`, ...) are understood and unknown ones are a TypeError. `memory` keeps what
    this call stored of its rows for the next call it is given to.

    Raises ValueError for input that cannot be decoded, `BrokenLogitsError` when the model returns
    NaN, `NotEnoughMemoryError` when the batch does not fit, `GenerationInterrupted` (a
    KeyboardInterrupt) on Ctrl-C; the last three have `.partial`.
    """
    running = stream(model, prompts, settings, memory=memory, **given)
    try:
        for _ in running:
            pass
    except KeyboardInterrupt:
        raise GenerationInterrupted(running.output) from None
    except (BrokenLogitsError, NotEnoughMemoryError) as error:
        error.partial = running.output
        raise
    return running.output


def stream(
    model: DenoisingModel,
    prompts: Prompts,
    settings: Settings | None = None,
    *,
    memory: PromptMemory | None = None,
    **given: Any,
) -> Stream:
    """Returns an iterator over the steps of a generation; arguments as for `generate`."""
    return Stream(model, prompts, resolve(model.defaults, settings, given), memory)


class Stream:
    """A generation that runs as it is iterated over; `output` is what there is so far."""

    def __init__(
        self,
        model: DenoisingModel,
        prompts: Prompts,
        settings: Settings,
        memory: PromptMemory | None = None,
        observer: Observer | None = None,
    ) -> None:
        rows = encode_all(model, prompts, settings)
        infilled = settings.infill or any(_has_text_after_gap(model, row) for row in rows)
        scheduler, cache = check(model, settings)
        if observer is not None and settings.verifier is not None:
            raise ValueError("passes that verify drafts are not observed: leave the verifier out")
        if memory is not None:
            memory.check(model, cache, settings.guidance_scale)
        num_slots = max(len(row.slots) for row in rows)
        block = block_length_of(model, settings, num_slots, rows)
        needs = needs_of(scheduler, num_slots, block)
        self.model = model
        self.canvas = canvas_of(model, rows, settings, block, needs)
        self.meter = Meter(model.device)
        loop = loop_of(model, self.canvas, settings, infilled)
        loop = replace(loop, memory=memory, observer=observer)
        self.admission: Admission | None = None  # of those prompts that wait
        if settings.batch_size is not None and settings.batch_size < len(rows):
            loop, self.admission = admitting(loop, self.canvas, settings.batch_size)
            self.canvas = self.admission.canvas
        self.scheduler, self.cache = loop.scheduler, loop.cache
        self._changes: dict[int, list[Write]] = {}  # of a method that revises, by prompt
        asked = Request(loop, self.canvas.layout, self.meter)
        self._events = asked.run(loop.run(self.canvas, self.meter))

    def __iter__(self) -> Iterator[StepEvent]:
        return self._events

    @property
    def output(self) -> GenerationOutput:
        """The rows as they stand, finished or not."""
        return self._collect(self._everyone(), None)

    def rows(self, prompts: Sequence[int]) -> GenerationOutput:
        """Returns the rows of some prompts as they stand, in this order.

        Of rows that are in the canvas, such as those of `event.finished`, no others are copied.
        What is counted of the whole batch is that of all its rows so far.
        """
        if self.admission is None:
            return self._collect(self.canvas, prompts)
        seats = {prompt: place for place, prompt in enumerate(self.admission.occupants)}
        if all(prompt in seats for prompt in prompts):
            return self._collect(self.canvas, [seats[prompt] for prompt in prompts])
        return self._collect(self._everyone(), prompts)

    def text(self, row: int = 0) -> str:
        """Returns the answer to a prompt as it stands, open slots shown as the mask token."""
        if self.model.tokenizer is None:
            raise ValueError("the model has no tokenizer: read canvas.tokens instead")
        prompt = range(len(self.canvas.layout.lengths))[row]
        canvas, place = self.canvas, prompt
        if self.admission is not None:  # who left was copied then, and who waits is as it was
            seated = prompt in self.admission.occupants
            canvas = self.canvas if seated else self.admission.everyone
            place = self.admission.occupants.index(prompt) if seated else prompt
        start, end = int(canvas.prompt_length[place]), canvas.layout.lengths[prompt]
        return str(self.model.tokenizer.decode(canvas.tokens[place, start:end].tolist()))

    def _collect(self, canvas: Canvas, places: Sequence[int] | None) -> GenerationOutput:
        if canvas.keep_history:
            read_history(canvas, self._changes)
        chosen = Chosen(canvas, places, self._changes)
        return collect(chosen, self.meter, self.model.tokenizer)

    def _everyone(self) -> Canvas:
        """Returns the canvas with a row for each prompt."""
        if self.admission is None:
            return self.canvas
        self.admission.save()
        return self.admission.everyone


def _has_text_after_gap(model: DenoisingModel, row: Row) -> bool:
    mask = model.spec.mask_token_id
    return any(token != mask for token in row.slots)


__all__ = ["GenerationInterrupted", "Infill", "Stream", "generate", "stream"]
