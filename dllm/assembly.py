"""From settings to a canvas and the loop that decodes it: noise, passes, waiting prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dllm.cache import Cache
from dllm.compatible import check
from dllm.decoding.batching import ContinuousBatch, OpenBatch, Opening
from dllm.decoding.comparing import ComparingPasses
from dllm.decoding.languages.asked import Asked, languages_of
from dllm.decoding.languages.held import HeldRows
from dllm.decoding.languages.toll import Toll
from dllm.decoding.loop import DenoisingLoop
from dllm.decoding.memory_limits import Demand
from dllm.decoding.passes import Observer, Passes, PlainPasses, Step, can_narrow
from dllm.decoding.prompt_memory import PromptMemory, SeatMemory
from dllm.decoding.seats import Seating, check_waiting, chosen_batch
from dllm.decoding.shadow import ShadowPasses
from dllm.decoding.speculation.started import Speculation, speculation_of
from dllm.decoding.uniform import UniformPasses, unread
from dllm.infilling.languages import first_ends, holes_of
from dllm.layout import at_eos_of, canvas_of, check_rows, needs_of, noise_of, with_room
from dllm.metrics import Meter
from dllm.models.diffusion_gemma import DiffusionGemma
from dllm.models.model import DenoisingModel
from dllm.models.wrap import GuidedModel, WrappedModel
from dllm.prompts import Row
from dllm.schedulers import Needs, Scheduler
from dllm.schedulers.renoise import Renoise
from dllm.settings import Settings
from dllm.state.candidates import Sampling
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise, Noise
from dllm.state.processing import Processing
from dllm.state.rows import start_drafts
from dllm.state.stopping import StopStrings
from dllm.state.window import Layout

Choose = Callable[[Canvas, CounterNoise], ContinuousBatch | None]


@dataclass(frozen=True)
class Beside:
    """What a generation has beside its rows and settings."""

    memory: PromptMemory | None = None  # keeps what is stored for the next one
    observer: Observer | None = None  # sees every pass
    toll: Toll | None = None  # measures what languages cost
    opening: Opening | None = None  # lets further rows in, of the same number of slots
    bound: int | None = None  # rows decoded at a time, of a list that nobody watches


def loop_of(
    model: DenoisingModel, rows: list[Row], settings: Settings, beside: Beside
) -> tuple[DenoisingLoop, Canvas]:
    """Returns the loop that decodes rows under settings, and the canvas that it decodes.

    Raises ValueError where settings, model and rows do not go together.
    """
    scheduler, cache, speculation = _parts(model, settings)
    memory, observer, opening = beside.memory, beside.observer, beside.opening
    if observer is not None:
        _check_observed(model, settings)
    if memory is not None:
        memory.check(model, cache, settings.guidance_scale)
    rows, canvas = _laid_out(model, rows, settings, 0 if opening is None else opening.num_columns)
    at_eos = at_eos_of(rows, settings, model.spec.mask_token_id)
    constrained = _constrained(model, canvas, rows, settings, beside.toll)
    noise = settings.noise or noise_of(rows, settings, model.device)
    needs = needs_of(scheduler, canvas.layout.num_slots, canvas.layout.block_length)
    choose = _choosing((scheduler, cache, speculation), model, canvas, settings, beside)
    batch = _batch(canvas, noise, beside.bound or settings.batch_size, beside, choose)
    if batch is not None:
        canvas, noise = batch.canvas, batch.noise
    if isinstance(batch, OpenBatch) and PromptMemory.suits(model, cache, settings.guidance_scale):
        batch.shared = SeatMemory(model.spec)
    if settings.guidance_scale > 0:
        model = GuidedModel(model, settings.guidance_scale, given=canvas.given)
    rules = _processing(model, canvas.layout, rows, settings)
    sampling = _sampling(scheduler, canvas.layout, settings)
    step = Step(scheduler, cache, sampling, noise, rules, constrained)
    passes, store_variants = _passes(model, step, needs, canvas, observer), needs.num_variants
    if speculation is not None:
        passes, store_variants = speculation.start(step, _narrows(needs, canvas), at_eos)
        start_drafts(canvas, speculation.drafts(canvas.tokens))
    loop = DenoisingLoop(
        model=model,
        scheduler=scheduler,
        cache=cache,
        passes=passes,
        store_variants=store_variants,
        at_eos=at_eos,
        refreshes=cache.refreshes,
        memory=memory,
        batch=batch,
        stop=stop_of(model, settings),
        constrained=constrained,
        keep_stamps=observer is not None,
        reads=unread if isinstance(passes, UniformPasses) else None,
        sampled=settings.temperature > 0,
    )
    return loop, canvas


def _parts(model: DenoisingModel, asked: Settings) -> tuple[Scheduler, Cache, Speculation | None]:
    """Returns the scheduler, the cache that plans the passes, and what a verifier brings."""
    (scheduler, cache), speculation = check(model, asked), speculation_of(asked.verifier)
    return scheduler, cache if speculation is None else speculation.cache(cache), speculation


def canvas_like(model: DenoisingModel, rows: list[Row], settings: Settings) -> Canvas:
    """Returns a canvas of rows that are read, not decoded: a schedule need not fit them."""
    scheduler, _ = check(model, settings)
    check_rows(model, rows)
    canvas = canvas_of(model, rows, settings, scheduler)
    if canvas.layout.ragged and isinstance(model, WrappedModel):
        model.check_padding()
    return canvas


def row_like(
    model: DenoisingModel, row: Row, settings: Settings, canvas: Canvas
) -> tuple[Canvas, HeldRows | None]:
    """Returns a canvas of one row that can enter an open one, and the row's languages."""
    rows, alone = _laid_out(model, [row], settings, canvas.layout.num_columns)
    return alone, _constrained(model, alone, rows, settings)


def _laid_out(
    model: DenoisingModel, rows: list[Row], settings: Settings, num_columns: int
) -> tuple[list[Row], Canvas]:
    """Returns rows with the room that they need, and their canvas of at least so many columns."""
    scheduler, _ = check(model, settings)
    check_rows(model, rows)
    rows = with_room(rows, scheduler, model.spec)
    canvas = canvas_of(model, rows, settings, scheduler, num_columns)
    scheduler.check(int(canvas.num_blocks.max()), canvas.layout.block_length)
    if canvas.layout.ragged and isinstance(model, WrappedModel):
        model.check_padding()
    return rows, canvas


def _choosing(
    parts: tuple[Scheduler, Cache, Speculation | None],
    model: DenoisingModel,
    canvas: Canvas,
    settings: Settings,
    beside: Beside,
) -> Choose:
    """Returns what chooses how many rows there are at a time, from what a step of them needs."""
    scheduler, cache, speculation = parts
    layout = canvas.layout
    needs = needs_of(scheduler, layout.num_slots, layout.block_length)
    count = needs.num_variants if speculation is None else speculation.verifier.num_variants
    demand = Demand(model, cache.uses_store, count, count, layout, Meter(model.device))
    # Guidance and the uniform process keep tensors of their own for the rows that they began with.
    elastic = settings.guidance_scale == 0 and not isinstance(model, DiffusionGemma)
    asked = settings.batch_size
    seating = Seating(beside.bound or asked, asked is not None, elastic, beside.bound is None)
    return partial(chosen_batch, cache=cache, demand=demand, seating=seating)


def _batch(
    canvas: Canvas,
    noise: Noise,
    bound: int | None,
    beside: Beside,
    choose: Choose,
) -> ContinuousBatch | OpenBatch | None:
    """Returns what fills the seats of finished rows; None: no other rows come."""
    if beside.opening is not None:
        assert isinstance(noise, CounterNoise)  # others cannot tell rows apart that enter
        return OpenBatch(canvas, noise, beside.opening.take, list(range(canvas.layout.num_rows)))
    if bound is not None and bound < canvas.layout.num_rows:
        waiting = canvas.layout.num_rows - bound
        tellable = check_waiting(noise, (bound, waiting), beside.memory, beside.observer)
        return choose(canvas, tellable)
    alone = beside.memory is None and beside.observer is None  # it is right that prompts wait
    return choose(canvas, noise) if alone and isinstance(noise, CounterNoise) else None


def _check_observed(model: DenoisingModel, settings: Settings) -> None:
    """Raises ValueError for what an observer of passes would not see."""
    if isinstance(model, DiffusionGemma):
        own = f"passes of {model.name!r} keep the text by themselves, and are not observed"
        raise ValueError(f"{own}: compare its outputs instead")
    if settings.verifier is not None:
        raise ValueError("passes that verify drafts are not observed: leave the verifier out")
    rules = ("min_new_tokens", "repetition_penalty", "logits_processors", "constraint", "template")
    if any(getattr(settings, rule) != getattr(Settings, rule) for rule in rules):
        raise ValueError(
            f"passes are observed with the model's own logits: leave {', '.join(rules)} out"
        )


def _passes(
    model: DenoisingModel, step: Step, needs: Needs, canvas: Canvas, observer: Observer | None
) -> Passes:
    """Returns what runs the passes of a scheduler without a verifier."""
    if isinstance(model, DiffusionGemma) and isinstance(step.scheduler, Renoise):
        room = canvas.layout.num_columns
        return UniformPasses(step, model, step.scheduler, model.new_keys(room))
    plain = PlainPasses(step, _narrows(needs, canvas), observer)
    if needs.shadow:
        return ShadowPasses(plain)
    return ComparingPasses(plain, needs.num_variants) if needs.num_variants > 1 else plain


def _narrows(needs: Needs, canvas: Canvas) -> bool:
    return can_narrow(needs, canvas.layout, canvas.tokens.device)


def _constrained(
    model: DenoisingModel,
    canvas: Canvas,
    rows: list[Row],
    settings: Settings,
    toll: Toll | None = None,
) -> HeldRows | None:
    """Returns the languages of rows, measured where there is a toll; None: there are none."""
    held: HeldRows | None = None
    barred = _never(canvas.layout, settings)
    if settings.template is not None:
        held = holes_of(model, rows, settings)
    elif settings.constraint is not None:
        at_eos = at_eos_of(rows, settings, model.spec.mask_token_id)
        asked = Asked(settings.constraint, settings.joint, settings.n, at_eos, barred)
        held = languages_of(model, canvas, asked)
    return held if toll is None or held is None else toll.on(held, barred, model.device)


def _never(layout: Layout, settings: Settings) -> tuple[int, ...]:
    """Returns the tokens that are never proposed."""
    ends = layout.eos_token_ids if settings.forbid_eos else ()
    return (layout.mask_token_id, *settings.forbidden_token_ids, *ends)


def _sampling(scheduler: Scheduler, layout: Layout, settings: Settings) -> Sampling:
    ends = layout.eos_token_ids
    needs = scheduler.needs(layout.num_slots, layout.block_length)
    forbidden = settings.forbidden_token_ids + (ends if settings.forbid_eos else ())
    if scheduler.without_mask:
        forbidden += (layout.mask_token_id,)
    return Sampling(
        mask_token_id=layout.mask_token_id,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        confidence=settings.confidence or scheduler.reads,
        forbidden_token_ids=forbidden,
        deferred_token_ids=settings.deferred_token_ids + (ends if settings.defer_eos else ()),
        dtype=settings.statistics_dtype,
        lean=settings.verifier is None and not needs.reads_logits,
    )


def _processing(
    model: DenoisingModel, layout: Layout, rows: list[Row], settings: Settings
) -> Processing | None:
    """Returns the call's own rules for logits; None: there are none."""
    padding = {model.spec.pad_token_id} - {layout.mask_token_id, None, *layout.eos_token_ids}
    rules = Processing(
        mask_token_id=layout.mask_token_id,
        eos_token_ids=layout.eos_token_ids,
        min_new_tokens=settings.min_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        processors=settings.logits_processors,
        first_end=first_ends(rows, model.device),
        pad_token_ids=tuple(one for one in padding if one is not None),
    )
    return rules if rules else None


def stop_of(model: DenoisingModel, settings: Settings) -> StopStrings | None:
    """Returns the texts that end a row; None: there are none."""
    if not settings.stop:
        return None
    if model.tokenizer is None:
        raise ValueError(
            f"stop={settings.stop!r} needs a tokenizer, which the model does not have: give "
            "eos_token_id, or a model with a tokenizer"
        )
    text_of = partial(model.tokenizer.decode, skip_special_tokens=False)
    return StopStrings(settings.stop, text_of)
