"""The front door: `generate` returns finished rows, `stream` yields them step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from dllm import cache as caches
from dllm import schedulers
from dllm.admission import Admission, admission_of
from dllm.cache import Cache
from dllm.canvas import Canvas, Layout, new_canvas
from dllm.capacity import NotEnoughMemoryError, Request
from dllm.guidance import GuidedModel
from dllm.loop import BrokenLogitsError, DenoisingLoop, StepEvent
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.noise import CounterNoise, Noise
from dllm.observer import Observer
from dllm.output import GenerationInterrupted, GenerationOutput, collect
from dllm.prompt_memory import PromptMemory
from dllm.prompts import Infill, Prompts, Row, encode_all
from dllm.sampling import Sampling
from dllm.schedulers import Needs, Scheduler
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings, resolve
from dllm.verifier import verified
from dllm.verifier_check import check_verifier


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
        block = _block_length(model, settings, num_slots, rows)
        needs = _needs(scheduler, num_slots, block)
        self.model = model
        self.canvas = _canvas(model, rows, settings, block, needs)
        self.meter = Meter(model.device)
        loop = _loop(model, self.canvas, settings, infilled)
        loop = replace(loop, memory=memory, observer=observer)
        self.admission: Admission | None = None  # of those prompts that wait
        if settings.batch_size is not None and settings.batch_size < len(rows):
            loop, self.admission = _admitting(loop, self.canvas, settings.batch_size)
            self.canvas = self.admission.canvas
        self.scheduler, self.cache = loop.scheduler, loop.cache
        asked = Request(loop, self.canvas.layout, self.meter)
        self._events = asked.run(loop.run(self.canvas, self.meter))

    def __iter__(self) -> Iterator[StepEvent]:
        return self._events

    @property
    def output(self) -> GenerationOutput:
        """The rows as they stand, finished or not."""
        return collect(self._everyone(), self.meter, self.model.tokenizer)

    def text(self, row: int = 0) -> str:
        """Returns the answer to a prompt as it stands, open slots shown as the mask token."""
        canvas = self._everyone()
        start, end = int(canvas.prompt_length[row]), canvas.layout.lengths[row]
        ids = canvas.tokens[row, start:end].tolist()
        if self.model.tokenizer is None:
            raise ValueError("the model has no tokenizer: read canvas.tokens instead")
        return str(self.model.tokenizer.decode(ids))

    def _everyone(self) -> Canvas:
        """Returns the canvas with a row for each prompt."""
        if self.admission is None:
            return self.canvas
        self.admission.save()
        return self.admission.everyone


def _needs(scheduler: Scheduler, num_slots: int, block: int) -> Needs:
    needs = scheduler.needs(num_slots, block)
    return needs.union(Needs(whole_block=True)) if scheduler.can_revise else needs


def _block_length(
    model: DenoisingModel, settings: Settings, num_slots: int, rows: list[Row]
) -> int:
    trained = model.spec.block_length
    block = settings.block_length or trained or min(DEFAULT_BLOCK_LENGTH, num_slots)
    _check_block(block, num_slots, rows, settings, model)
    return block


def _canvas(
    model: DenoisingModel, rows: list[Row], settings: Settings, block: int, needs: Needs
) -> Canvas:
    spec = model.spec
    num_slots = max(len(row.slots) for row in rows)
    ends = _end_tokens(spec.eos_token_ids, settings.eos_token_id)
    width = needs.width(num_slots, block)
    layout = Layout(
        num_rows=len(rows),
        num_columns=max(len(row.prompt) + len(row.slots) for row in rows),
        block_length=block,
        mask_token_id=spec.mask_token_id,
        fill_token_id=ends[0] if ends else spec.pad_token_id,
        eos_token_ids=ends,
        lengths=tuple(len(row.prompt) + len(row.slots) for row in rows),
        num_slots=num_slots,
        window_length=max(needs.window, block),
        region_length=width if needs.whole_row else 0,
        num_shadows=width if needs.shadow else 0,
        can_shorten=needs.shortens,
        whole_block=needs.whole_block,
    )
    canvas = new_canvas(layout, [r.prompt for r in rows], [r.slots for r in rows], model.device)
    if spec.attention == "block_causal" or settings.blocks_from == "zero":
        canvas.count_blocks_from_zero()
    return canvas


def _check_block(
    block: int, longest: int, rows: list[Row], settings: Settings, model: DenoisingModel
) -> None:
    trained = model.spec.block_length
    aligned = not trained or not block % trained or not trained % block
    if model.spec.attention == "block_causal" and not aligned:
        raise ValueError(
            f"block_length={block} is not a multiple of the {trained} that the model was trained "
            "on, nor a divisor of it"
        )
    if block > longest:
        raise ValueError(f"block_length={block} is longer than the {longest} new tokens")
    uneven = not settings.infill and settings.max_new_tokens % block
    uneven = uneven and settings.blocks_from == "prompt"
    if uneven and model.spec.attention != "block_causal" and settings.max_new_tokens == longest:
        fits = [n for n in range(1, longest + 1) if longest % n == 0]
        raise ValueError(
            f"max_new_tokens={settings.max_new_tokens} is not a multiple of block_length={block}; "
            f"block lengths that fit: {', '.join(map(str, fits))}"
        )


def _end_tokens(known: tuple[int, ...], given: int | list[int] | None) -> tuple[int, ...]:
    if given is None:
        return known
    return (given,) if isinstance(given, int) else tuple(given)


def _has_text_after_gap(model: DenoisingModel, row: Row) -> bool:
    mask = model.spec.mask_token_id
    return any(token != mask for token in row.slots)


def check(model: DenoisingModel, settings: Settings) -> tuple[Scheduler, Cache]:
    """Returns the scheduler and cache of settings; raises ValueError if they do not go together."""
    scheduler = schedulers.registry.create(settings.scheduler)
    cache = caches.registry.create(settings.cache)
    cache.check(model.spec)
    scheduler.check_model(model.spec)
    name = scheduler.summary()["name"]
    needs = scheduler.needs(settings.max_new_tokens, settings.block_length or DEFAULT_BLOCK_LENGTH)
    if cache.stores and not model.supports_cache:
        raise ValueError(
            f"cache {cache.summary()['name']!r} needs a model with a K/V store, and {model.name!r} "
            "has none: use cache='none'"
        )
    if needs.shadow and not model.supports_cache:
        raise ValueError(
            f"scheduler {name!r} feeds columns twice, which the wrapped module {model.name!r} "
            "cannot: load the checkpoint with dllm.load"
        )
    if cache.foresees and not scheduler.announces:
        raise ValueError(
            f"cache {cache.summary()['name']!r} feeds what the next step commits, which scheduler "
            f"{name!r} only knows when it sees the logits: use fixed_quota:order=planned, or the "
            "cache 'dkv'"
        )
    if needs.branches > 1 and settings.temperature > 0:
        raise ValueError(
            f"scheduler {name!r} compares variants of a row and is deterministic: temperature="
            f"{settings.temperature} must be 0"
        )
    if needs.branches > 1 and getattr(cache, "first_token", "feed") == "force":
        raise ValueError(f"scheduler {name!r} needs first_token='feed' of its cache")
    if settings.verifier is not None:
        verifier = check_verifier(settings, scheduler, cache)
        if verifier.execution == "tree" and not model.supports_cache:
            raise ValueError(
                "execution='tree' hides keys from queries, which the wrapped module "
                f"{model.name!r} cannot: load the checkpoint with dllm.load, or take 'batch'"
            )
    return scheduler, cache


def _loop(
    model: DenoisingModel, canvas: Canvas, settings: Settings, infilled: bool
) -> DenoisingLoop:
    scheduler, cache = check(model, settings)
    layout = canvas.layout
    scheduler.check(int(canvas.num_blocks.max()), layout.block_length)
    canvas.keep_history = scheduler.can_revise
    if settings.guidance_scale > 0:
        model = GuidedModel(model, settings.guidance_scale, given=canvas.fixed)
    loop = DenoisingLoop(
        model=model,
        scheduler=scheduler,
        cache=cache,
        sampling=_sampling(scheduler, layout, settings),
        noise=settings.noise or _noise(layout.num_rows, settings, model.device),
        needs=_needs(scheduler, layout.num_slots, layout.block_length),
        at_eos=settings.at_eos or ("ignore" if infilled else "stop"),
    )
    if settings.verifier is None:
        return loop
    return verified(loop, check_verifier(settings, scheduler, cache))


def _admitting(
    loop: DenoisingLoop, everyone: Canvas, batch_size: int
) -> tuple[DenoisingLoop, Admission]:
    """Returns the loop that decodes so many rows at a time, and who lets the others in."""
    where = f"batch_size={batch_size} has {len(everyone.tokens) - batch_size} prompt(s) wait"
    if loop.memory is not None:
        raise ValueError(
            f"{where}, and memory is of rows that are there from the start: leave one of them out, "
            "or give as many prompts as the batch has rows"
        )
    if loop.observer is not None:
        raise ValueError(f"{where}, and passes are observed of one batch: leave batch_size out")
    if not isinstance(loop.noise, CounterNoise):
        raise ValueError(
            f"{where}, and noise={type(loop.noise).__name__} does not tell prompts apart: give "
            "seed instead, or leave batch_size out"
        )
    admission = admission_of(everyone, batch_size, loop.noise)
    model = loop.model
    if isinstance(model, GuidedModel):
        model = replace(model, given=admission.canvas.given)
    return replace(loop, model=model, noise=admission.seated, admission=admission), admission


def _sampling(scheduler: Scheduler, layout: Layout, settings: Settings) -> Sampling:
    ends = layout.eos_token_ids
    needs = scheduler.needs(layout.num_slots, layout.block_length)
    return Sampling(
        mask_token_id=layout.mask_token_id,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        confidence=settings.confidence or scheduler.reads,
        forbidden_token_ids=settings.forbidden_token_ids + (ends if settings.forbid_eos else ()),
        deferred_token_ids=settings.deferred_token_ids + (ends if settings.defer_eos else ()),
        dtype=settings.statistics_dtype,
        lean=settings.verifier is None and not needs.reads_logits,
    )


def _noise(num_rows: int, settings: Settings, device: torch.device) -> Noise:
    """Returns noise whose seeds are given, drawn from given generators, or drawn anew."""
    seed, generator = settings.seed, settings.generator
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(generator, list):
        _check_count("generator", len(generator), num_rows)
        drawn = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generator]
    elif isinstance(seed, list):
        _check_count("seed", len(seed), num_rows)
        drawn = seed
    elif seed is not None:
        drawn = [seed + row for row in range(num_rows)]
    else:
        where = generator.device if generator is not None else "cpu"
        drawn = torch.randint(2**62, (num_rows,), generator=generator, device=where).tolist()
    return CounterNoise(torch.tensor(drawn, device=device))


def _check_count(name: str, given: int, num_rows: int) -> None:
    if given != num_rows:
        raise ValueError(
            f"{given} {name}s were given for {num_rows} prompts: one a prompt is needed"
        )


__all__ = ["GenerationInterrupted", "Infill", "Stream", "generate", "stream"]
