"""The front door: `generate` returns finished rows, `stream` yields them step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dllm import cache as caches
from dllm import schedulers
from dllm.cache import Cache
from dllm.canvas import Canvas, Layout, new_canvas
from dllm.guidance import GuidedModel
from dllm.loop import BrokenLogitsError, DenoisingLoop, StepEvent
from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.noise import CounterNoise, Noise
from dllm.output import GenerationInterrupted, GenerationOutput, collect
from dllm.prompts import Infill, Prompts, Row, encode_all
from dllm.sampling import Sampling
from dllm.schedulers import Scheduler
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings, resolve


def generate(
    model: DenoisingModel, prompts: Prompts, settings: Settings | None = None, **given: Any
) -> GenerationOutput:
    """Returns the completed rows of a batch of prompts.

    `prompts` is a text, chat messages, token ids, an `Infill`, or a list of one of them. Further
    settings are the fields of `Settings`; names from the literature (`gen_length`, `block_size`,
    `remasking`, `steps`, ...) are understood and unknown ones are a TypeError.

    Raises ValueError for input that cannot be decoded, `BrokenLogitsError` when the model returns
    NaN, `GenerationInterrupted` (a KeyboardInterrupt) on Ctrl-C; the last two have `.partial`.
    """
    running = stream(model, prompts, settings, **given)
    try:
        for _ in running:
            pass
    except KeyboardInterrupt:
        raise GenerationInterrupted(running.output) from None
    except BrokenLogitsError as error:
        error.partial = running.output
        raise
    return running.output


def stream(
    model: DenoisingModel, prompts: Prompts, settings: Settings | None = None, **given: Any
) -> Stream:
    """Returns an iterator over the steps of a generation; arguments as for `generate`."""
    return Stream(model, prompts, resolve(model.defaults, settings, given))


class Stream:
    """A generation that runs as it is iterated over; `output` is what there is so far."""

    def __init__(self, model: DenoisingModel, prompts: Prompts, settings: Settings) -> None:
        rows = encode_all(model, prompts, settings)
        infilled = settings.infill or any(_has_text_after_gap(model, row) for row in rows)
        self.model = model
        self.canvas = _canvas(model, rows, settings)
        self.meter = Meter(model.device)
        loop = _loop(model, self.canvas, settings, infilled)
        self.scheduler, self.cache = loop.scheduler, loop.cache
        self._events = loop.run(self.canvas, self.meter)

    def __iter__(self) -> Iterator[StepEvent]:
        return self._events

    @property
    def output(self) -> GenerationOutput:
        """The rows as they stand, finished or not."""
        return collect(self.canvas, self.meter, self.model.tokenizer)

    def text(self, row: int = 0) -> str:
        """Returns the answer of a row as it stands, open slots shown as the mask token."""
        start, end = int(self.canvas.prompt_length[row]), self.canvas.layout.lengths[row]
        ids = self.canvas.tokens[row, start:end].tolist()
        if self.model.tokenizer is None:
            raise ValueError("the model has no tokenizer: read canvas.tokens instead")
        return str(self.model.tokenizer.decode(ids))


def _canvas(model: DenoisingModel, rows: list[Row], settings: Settings) -> Canvas:
    spec = model.spec
    longest = max(len(row.slots) for row in rows)
    block = settings.block_length or spec.block_length or min(DEFAULT_BLOCK_LENGTH, longest)
    _check_block(block, longest, rows, settings, model)
    ends = _end_tokens(spec.eos_token_ids, settings.eos_token_id)
    layout = Layout(
        num_rows=len(rows),
        num_columns=max(len(row.prompt) + len(row.slots) for row in rows),
        block_length=block,
        mask_token_id=spec.mask_token_id,
        fill_token_id=ends[0] if ends else spec.pad_token_id,
        eos_token_ids=ends,
        lengths=tuple(len(row.prompt) + len(row.slots) for row in rows),
    )
    canvas = new_canvas(layout, [r.prompt for r in rows], [r.slots for r in rows], model.device)
    if spec.attention == "block_causal":
        canvas.count_blocks_from_zero()
    return canvas


def _check_block(
    block: int, longest: int, rows: list[Row], settings: Settings, model: DenoisingModel
) -> None:
    trained = model.spec.block_length
    if model.spec.attention == "block_causal" and trained and block % trained:
        raise ValueError(
            f"block_length={block} is not a multiple of the {trained} that the model was trained on"
        )
    if block > longest:
        raise ValueError(f"block_length={block} is longer than the {longest} new tokens")
    uneven = not settings.infill and settings.max_new_tokens % block
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
    """Returns the scheduler and cache of settings; raises ValueError if the model has no use."""
    scheduler = schedulers.registry.create(settings.scheduler)
    cache = caches.registry.create(settings.cache)
    cache.check(model.spec)
    if cache.stores and not model.supports_cache:
        raise ValueError(
            f"cache {cache.summary()['name']!r} needs a model with a K/V store, and {model.name!r} "
            "has none: use cache='none'"
        )
    return scheduler, cache


def _loop(
    model: DenoisingModel, canvas: Canvas, settings: Settings, infilled: bool
) -> DenoisingLoop:
    scheduler, cache = check(model, settings)
    blocks = int(canvas.num_blocks.max())
    scheduler.check(blocks, canvas.layout.block_length)
    if settings.guidance_scale > 0:
        model = GuidedModel(model, settings.guidance_scale, given=canvas.fixed)
    return DenoisingLoop(
        model=model,
        scheduler=scheduler,
        cache=cache,
        sampling=_sampling(scheduler, canvas.layout, settings),
        noise=settings.noise or _noise(canvas.layout.num_rows, settings, model.device),
        at_eos=settings.at_eos or ("ignore" if infilled else "stop"),
    )


def _sampling(scheduler: Scheduler, layout: Layout, settings: Settings) -> Sampling:
    ends = layout.eos_token_ids
    return Sampling(
        mask_token_id=layout.mask_token_id,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        confidence=settings.confidence or scheduler.confidence,
        forbidden_token_ids=settings.forbidden_token_ids + (ends if settings.forbid_eos else ()),
        deferred_token_ids=settings.deferred_token_ids + (ends if settings.defer_eos else ()),
        dtype=settings.statistics_dtype,
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
