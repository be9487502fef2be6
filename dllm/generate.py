"""The front door: `generate` returns finished rows, `stream` yields them step by step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from typing_extensions import Unpack

from dllm.aliases import Given
from dllm.assembly import Beside, canvas_like, loop_of
from dllm.decoding.batching import ContinuousBatch
from dllm.decoding.languages.one_row import UnfillableRowError
from dllm.decoding.languages.toll import Toll
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.decoding.passes import Forward, Observer
from dllm.decoding.prompt_memory import PromptMemory
from dllm.infilling.cal import choose_lengths
from dllm.infilling.gaps import Infill
from dllm.infilling.rows import rows_of
from dllm.infilling.search import Search
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.output import (
    Chosen,
    GenerationInterrupted,
    GenerationOutput,
    Tried,
    Write,
    collect,
    read_history,
)
from dllm.prompts import Prompts, join
from dllm.recipes.recipe import Given as GivenRecipe
from dllm.recipes.recipe import recipe_settings
from dllm.settings import Settings, resolve
from dllm.state.canvas import Canvas
from dllm.state.window import StepEvent

Report = Callable[[int, int], object]  # is told of the finished rows, and of all


def generate(  # noqa: PLR0913 beside the settings, who is told of the steps
    model: DenoisingModel,
    prompts: Prompts | None = None,
    settings: Settings | None = None,
    *,
    memory: PromptMemory | None = None,
    recipe: GivenRecipe | None = None,
    progress: bool | Report = False,
    callback: Callable[[StepEvent], object] | None = None,
    **given: Unpack[Given],
) -> GenerationOutput:
    """Returns the completed rows of a batch of prompts.

    `prompts` is a text, chat messages, token ids, an `Infill`, or a list of one of them; or what a
    tokenizer returns, also as `input_ids=` and `attention_mask=`, whose padding is left out.
    Further settings are the fields of `Settings`; names from the literature (`gen_length`,
    `block_size`, `remasking`, `steps`, ...) are understood and unknown ones are a TypeError.
    `memory` keeps what this call stored of its rows for the next call it is given to. `recipe` is
    what `dllm tune` found: a file, or a mapping such as `model.recipe`; what the call gives
    itself wins over it, and one of another model is a ValueError.
    `progress=True` shows a bar on stderr, or in a notebook; a callable is called with the number
    of finished rows and that of all rows, first with 0, then after each step that finished some,
    at last with all. `callback` gets the event of each step, as `stream` yields it. What one of
    them raises ends the generation.

    Raises ValueError for input that cannot be decoded, `BrokenLogitsError` when the model returns
    NaN, `NotEnoughMemoryError` when the batch does not fit, `GenerationInterrupted` (a
    KeyboardInterrupt) on Ctrl-C, `UnfillableRowError` when a grammar that is asked token by token
    leaves a row no way; the last four have `.partial`.
    """
    running = stream(model, prompts, settings, memory=memory, recipe=recipe, **given)
    try:
        with following(running, progress) as advance:
            for event in running:
                advance(event)
                if callback is not None:
                    callback(event)
    except KeyboardInterrupt:
        raise GenerationInterrupted(running.output) from None
    except (BrokenLogitsError, NotEnoughMemoryError, UnfillableRowError) as error:
        error.partial = running.output
        raise
    return running.output


def stream(
    model: DenoisingModel,
    prompts: Prompts | None = None,
    settings: Settings | None = None,
    *,
    memory: PromptMemory | None = None,
    recipe: GivenRecipe | None = None,
    **given: Unpack[Given],
) -> Stream:
    """Returns an iterator over the steps of a generation; arguments as for `generate`."""
    _check_kinds(model, settings)
    named: dict[str, Any] = {**given}
    encoding = {name: named.pop(name) for name in _ENCODING if name in named}
    if recipe is not None:
        if settings is not None:
            raise TypeError("settings and recipe both say all: give one, and single ones by name")
        settings = resolve(model.defaults, None, recipe_settings(recipe, model))
    resolved = resolve(model.defaults, settings, named)
    if resolved.template is None or prompts is not None or encoding:
        prompts = join(prompts, encoding)
    return Stream(model, prompts, resolved, memory)


@contextmanager
def following(running: Stream, progress: bool | Report) -> Iterator[Callable[[StepEvent], object]]:
    """Yields what is told of each event, and shows or reports how far a generation is."""
    if progress is False:
        yield lambda event: None
    elif progress is True:
        with _bar(running) as advance:
            yield advance
    else:
        rows, ended = running.num_answers, 0
        progress(0, rows)

        def report(event: StepEvent) -> None:
            nonlocal ended
            if event.finished:
                ended += len(event.finished)
                progress(ended, rows)

        yield report
        if ended < rows:  # those that had nothing to fill
            progress(rows, rows)


@contextmanager
def _bar(running: Stream) -> Iterator[Callable[[StepEvent], None]]:
    """Shows a bar, and yields what moves it by an event; it asks the device for nothing."""
    # Start-up time: it is for who wants a bar.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    layout = running.canvas.layout
    rows, most = running.num_answers, max(layout.num_slots, 1)
    ended = forwards = 0
    reached = 0.0
    text = TextColumn("{task.fields[done]} of {task.fields[rows]} rows, {task.fields[steps]} steps")
    columns = (BarColumn(), TaskProgressColumn(), text, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=rows, done=0, rows=rows, steps=0)

        def advance(event: StepEvent) -> None:
            nonlocal ended, forwards, reached
            ended, forwards = ended + len(event.finished), forwards + 1
            seated = min(len(event.prompts), rows - ended)
            sure = ended + seated * (1 - min(event.left / most, 1))
            reached = max(reached, sure)  # a row that has just entered has all before it
            bars.update(bar, completed=reached, done=ended, steps=forwards)

        yield advance
        bars.update(bar, completed=rows, done=rows)


_ENCODING = ("input_ids", "attention_mask")


def _check_kinds(model: Any, settings: Any) -> None:
    """Raises TypeError for what is taken for a model or for settings, with the way to have one."""
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        raise TypeError(f"model={name!r} is a name: load it first, model=dllm.load({name!r})")
    if not hasattr(model, "spec"):
        raise TypeError(
            f"model={type(model).__name__} is none of this package's: load one with dllm.load, or "
            "wrap what returns logits, dllm.wrap(module, mask_token_id=..., eos_token_id=...)"
        )
    if isinstance(settings, Mapping):
        raise TypeError(
            "settings is a mapping: give its entries by name, generate(model, prompts, "
            "**settings), or make Settings(**settings) of it"
        )
    if settings is not None and not isinstance(settings, Settings):
        raise TypeError(
            f"settings={settings!r} must be dllm.Settings; give single ones by name, such as "
            "max_new_tokens=64"
        )


class Stream:
    """A generation that runs as it is iterated over; `output` is what there is so far.

    A row is an answer. With templates whose holes may have several lengths, an answer has a row of
    the canvas for each of them: it is finished with the last one, and is then the best one.
    """

    def __init__(  # noqa: PLR0913 beside the settings, who looks on
        self,
        model: DenoisingModel,
        prompts: Prompts | None,
        settings: Settings,
        memory: PromptMemory | None = None,
        observer: Observer | None = None,
        toll: Toll | None = None,
        bound: int | None = None,
    ) -> None:
        rows = rows_of(model, prompts, settings)
        self.model, self.meter = model, Meter(model.device)
        probed: dict[int, tuple[Tried, ...]] = {}
        if any(row.laid is not None and row.laid.probed for row in rows):
            like, alone = canvas_like(model, rows, settings), Forward(model, None, self.meter)
            rows, probed = choose_lengths(rows, like, alone)
        beside = Beside(memory, observer, toll, bound=bound)
        loop, self.canvas = loop_of(model, rows, settings, beside)
        self.batch = loop.batch if isinstance(loop.batch, ContinuousBatch) else None
        self.scheduler, self.cache, self.stop = loop.scheduler, loop.cache, loop.stop
        self._changes: dict[int, list[Write]] = {}  # of a method that revises, by prompt
        self._events = loop.run(self.canvas, self.meter)
        self.search: Search | None = None
        if settings.template is not None:
            ends = self.canvas.layout.eos_token_ids
            self.search = Search(rows, ends, Forward(model, None, self.meter), probed)
            self._events = self.search.follow(self._events, self.canvas, self._tokens)

    def __iter__(self) -> Iterator[StepEvent]:
        return self._events

    @property
    def num_answers(self) -> int:
        """Answers to all prompts together."""
        return len(self.canvas.layout.lengths) if self.search is None else self.search.num_answers

    @property
    def output(self) -> GenerationOutput:
        """The rows as they stand, finished or not."""
        if self.search is not None:
            return self.rows(range(self.num_answers))
        return self._collect(self._all_rows(), None)

    def rows(self, prompts: Sequence[int]) -> GenerationOutput:
        """Returns the rows of some prompts as they stand, in this order.

        Of rows that are in the canvas, such as those of `event.finished`, no others are copied.
        What is counted of the whole batch is that of all its rows so far.
        """
        if self.search is not None:
            canvas = self._all_rows()
            out = self._collect(canvas, [self.search.shown(prompt) for prompt in prompts])
            return self.search.finish(out, canvas, prompts)
        if self.batch is None:
            return self._collect(self.canvas, prompts)
        seats = {prompt: seat for seat, prompt in enumerate(self.batch.prompt_ids)}
        if all(prompt in seats for prompt in prompts):
            return self._collect(self.canvas, [seats[prompt] for prompt in prompts])
        return self._collect(self._all_rows(), prompts)

    def text(self, row: int = 0) -> str:
        """Returns the answer to a prompt as it stands, open slots shown as the mask token."""
        if self.model.tokenizer is None:
            raise ValueError("the model has no tokenizer: read canvas.tokens instead")
        answer = range(self.num_answers)[row]
        prompt = answer if self.search is None else self.search.shown(answer)
        canvas, seat = self._seat(prompt)
        start, end = int(canvas.prompt_length[seat]), canvas.layout.kept[prompt]
        start -= 0 if self.search is None else self.search.lead(prompt)
        shown = ~canvas.hidden[seat, start:end]
        return str(self.model.tokenizer.decode(canvas.tokens[seat, start:end][shown].tolist()))

    def _tokens(self, prompt: int) -> list[int]:
        """Returns what the row of a prompt holds, prompt included."""
        canvas, seat = self._seat(prompt)
        return list(canvas.tokens[seat, : canvas.layout.kept[prompt]].tolist())

    def _seat(self, prompt: int) -> tuple[Canvas, int]:
        """Returns the canvas in which the row of a prompt is, and where."""
        if self.batch is None:
            return self.canvas, prompt
        # Who left was copied then, and who waits is as it was.
        if prompt in self.batch.prompt_ids:
            return self.canvas, self.batch.prompt_ids.index(prompt)
        return self.batch.all_rows, prompt

    def _collect(self, canvas: Canvas, seats: Sequence[int] | None) -> GenerationOutput:
        if canvas.layout.keep_history:
            read_history(canvas, self._changes)
        chosen = Chosen(canvas, seats, self._changes)
        return collect(chosen, self.meter, self.model.tokenizer, self.stop)

    def _all_rows(self) -> Canvas:
        """Returns the canvas with a row for each prompt."""
        if self.batch is None:
            return self.canvas
        self.batch.save()
        return self.batch.all_rows


__all__ = ["GenerationInterrupted", "Infill", "Stream", "generate", "stream"]
