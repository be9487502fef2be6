"""Encoded prompts become a canvas: slots behind each, blocks, and what a scheduler looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dllm.constraints.grammar import methods_by_token
from dllm.decoding.languages.asked import check_count
from dllm.decoding.speculation import verifiers
from dllm.models.config import ModelSpec, UniformSpec
from dllm.models.diffusion_gemma import DiffusionGemma
from dllm.models.model import DenoisingModel
from dllm.prompts import Row, end_tokens
from dllm.schedulers import Needs, Scheduler
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise, Noise
from dllm.state.progress import AtEnd
from dllm.state.rows import count_blocks_from_zero, make_room
from dllm.state.window import Layout

# Attention of models that decode whole blocks.
WHOLE_BLOCKS = ("block_causal", "causal_context", "encoder_decoder")


def canvas_of(
    model: DenoisingModel,
    rows: list[Row],
    settings: Settings,
    scheduler: Scheduler,
    room: int = 0,
) -> Canvas:
    """Returns the canvas of encoded prompts, cut into blocks.

    `room` are columns for rows that enter it later, of other lengths; 0: none does.
    """
    block = block_length_of(model, rows, settings, scheduler)
    spec, kept = model.spec, tuple(len(row.prompt) + len(row.slots) for row in rows)
    aligned = spec.attention == "block_causal" and spec.blocks_from == "zero"
    from_zero = aligned or settings.blocks_from == "zero"
    whole = isinstance(spec, UniformSpec) or spec.attention in WHOLE_BLOCKS
    if whole and own_block_of(settings) is None:
        rows = [row if row.infilled else _to_block_end(row, block, spec, from_zero) for row in rows]
    if own_block_of(settings) is not None:
        _check_beginnings(rows)
    num_slots = max(len(row.slots) for row in rows)
    needs = needs_of(scheduler, num_slots, block)
    ends = end_tokens(spec.eos_token_ids, settings.eos_token_id)
    width = needs.width(num_slots, block)
    layout = Layout(
        num_rows=len(rows),
        num_columns=max(room, *(len(row.prompt) + len(row.slots) for row in rows)),
        block_length=block,
        mask_token_id=spec.mask_token_id,
        fill_token_id=ends[0] if ends else spec.pad_token_id,
        eos_token_ids=ends,
        lengths=tuple(len(row.prompt) + len(row.slots) for row in rows),
        kept=kept,
        num_slots=num_slots,
        window_length=max(needs.window, block),
        region_length=width if needs.whole_row else 0,
        num_spare=width if needs.shadow else 0,
        can_shorten=needs.shortens,
        whole_block=needs.whole_block,
        keep_history=scheduler.can_revise or bool(methods_by_token(settings.constraint)),
        expand_token_id=spec.expand_token_id,
        skip_after_end=at_eos_of(rows, settings, spec.mask_token_id) == "skip",
        admits=room > 0,
        span_length=settings.block_length or DEFAULT_BLOCK_LENGTH,
    )
    canvas = new_canvas(layout, [r.prompt for r in rows], [r.slots for r in rows], model.device)
    if needs.room:
        more = torch.tensor([row.hidden for row in rows], device=model.device)
        make_room(canvas, canvas.num_slots, canvas.num_slots + more)
    if from_zero:
        count_blocks_from_zero(canvas)
    return canvas


def _check_beginnings(rows: list[Row]) -> None:
    """Raises ValueError for rows without a token that the next one could be predicted from."""
    for number, row in enumerate(rows):
        if not row.prompt:
            raise ValueError(
                f"prompt {number} begins with an open slot, and a verifier that reads causally "
                "predicts tokens behind others: give at least one token before it"
            )


def check_rows(model: DenoisingModel, rows: list[Row]) -> None:
    """Raises ValueError for prompts that an encoder cannot read, or that have gaps to fill."""
    if not isinstance(model, DiffusionGemma):
        return
    for index, row in enumerate(rows):
        if row.infilled:
            raise ValueError(
                f"prompt {index} has gaps to fill, and {model.name!r} writes behind its prompt "
                "alone: give the text before the gap"
            )
        model.check_prompt(row.prompt, f"prompt {index}")


def with_room(rows: list[Row], scheduler: Scheduler, spec: ModelSpec) -> list[Row]:
    """Returns rows with the columns that a scheduler lets their gap grow to, if it does.

    As far as the model's limit allows. Raises ValueError for a row with several gaps.
    """
    needs = scheduler.needs(max(len(row.slots) for row in rows), 1)
    if not needs.room:
        return rows
    asked = f"scheduler {scheduler.summary()['name']!r}"
    return [_with_room(f"prompt {n}", row, needs, spec, asked) for n, row in enumerate(rows)]


def _with_room(name: str, row: Row, needs: Needs, spec: ModelSpec, asked: str) -> Row:
    gap = row.slots.count(spec.mask_token_id)
    if any(token != spec.mask_token_id for token in row.slots[:gap]):
        raise ValueError(
            f"{name} has several gaps, or text of `fixed` in its answer, and {asked} lets one gap "
            "behind the beginning grow: give one, or decode at a fixed length with another "
            "scheduler, such as 'dream'"
        )
    more = min(needs.room - gap, spec.max_length - len(row.prompt) - len(row.slots))
    begin = min(gap, needs.begin or gap)
    hidden = gap - begin if needs.begin else max(more, 0)
    empty = spec.eos_token_ids[0] if spec.eos_token_ids else spec.pad_token_id  # no mask
    slots = [*row.slots[:begin], *[empty] * hidden, *row.slots[gap:]]
    return replace(row, slots=slots, hidden=hidden)


def _to_block_end(row: Row, block: int, spec: ModelSpec, from_zero: bool) -> Row:
    """Returns a row whose slots fill its last block.

    Models of blocks and those of the uniform process were trained on whole ones. Their authors
    decode whole blocks and cut what was not asked for.
    """
    length = len(row.prompt) + len(row.slots)
    counted = length if from_zero else len(row.slots)
    more = min(-counted % block, spec.max_length - length)
    if more <= 0:
        return row
    return replace(row, slots=[*row.slots, *[spec.mask_token_id] * more])


def new_canvas(
    layout: Layout,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[Sequence[int]],
    device: torch.device,
) -> Canvas:
    """Returns a canvas of prompts followed by slots; a slot that holds the mask id is open."""
    width = layout.num_stored
    tokens = torch.full((len(prompts), width), layout.fill_token_id, dtype=torch.int64)
    # By place in the whole: to walk over rows makes a tensor for each of a long list.
    flat = tokens.view(-1)
    for row, (prompt, slot) in enumerate(zip(prompts, slots, strict=True)):
        text, start = torch.tensor([*prompt, *slot], dtype=torch.int64), row * width
        flat[start : start + len(text)] = text
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    generated = torch.arange(width) >= prompt_length[:, None]
    fixed = ~(generated & (tokens == layout.mask_token_id))
    return Canvas(layout, tokens.to(device), fixed.to(device), prompt_length.to(device))


def block_length_of(
    model: DenoisingModel, rows: list[Row], settings: Settings, scheduler: Scheduler
) -> int:
    """Returns the columns decoded together; a row's last block may have fewer.

    Raises ValueError where a block-causal model was trained on others.
    """
    if (own := own_block_of(settings)) is not None:
        return own
    num_slots = max(len(row.slots) for row in rows)
    if scheduler.needs(num_slots, 1).room:  # the whole gap, wherever it ends
        return max(row.slots.count(model.spec.mask_token_id) + row.hidden for row in rows)
    trained = model.spec.block_length
    block = settings.block_length or trained or DEFAULT_BLOCK_LENGTH
    if isinstance(model.spec, UniformSpec):
        return block  # of any length, and never cut: the model fills a whole canvas
    if model.spec.attention != "block_causal":
        return block if model.spec.attention in WHOLE_BLOCKS else min(block, num_slots)
    assert trained is not None
    if block % trained and trained % block:
        fits = [n for n in range(1, trained + 1) if trained % n == 0]
        raise ValueError(
            f"block_length={block} is not a multiple of the {trained} that the model was trained "
            f"on, nor a divisor of it: {', '.join(map(str, fits))}, {2 * trained}, ... fit"
        )
    return block


def own_block_of(settings: Settings) -> int | None:
    """Returns the columns that a verifier decodes together in place of a block, if it does."""
    given = settings.verifier
    return None if given is None else verifiers.registry.create(given).own_block


def needs_of(scheduler: Scheduler, num_slots: int, block: int) -> Needs:
    """Returns what a scheduler asks of the loop; revising takes logits of the whole block."""
    needs = scheduler.needs(num_slots, block)
    return needs.union(Needs(whole_block=True)) if scheduler.can_revise else needs


def at_eos_of(rows: list[Row], settings: Settings, mask_token_id: int) -> AtEnd:
    """Returns what an end token does; rows with text behind a gap go on unless they are told."""
    # Inner holes of a template hold no end token, so that one ends the last hole alone.
    untold = [row for row in rows if row.laid is None]
    infilled = any(token != mask_token_id for row in untold for token in row.slots)
    return settings.at_eos or ("ignore" if settings.infill or infilled else "stop")


def noise_of(rows: list[Row], settings: Settings, device: torch.device) -> Noise:
    """Returns noise whose seeds are given, drawn from given generators, or drawn anew.

    Rows of one answer share a seed.
    """
    seed, generator = settings.seed, settings.generator
    answers = [number if row.laid is None else row.laid.answer for number, row in enumerate(rows)]
    num_rows = max(answers) + 1
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(generator, list):
        check_count("generator", len(generator), num_rows)
        drawn = [int(torch.randint(2**62, (), generator=g, device=g.device)) for g in generator]
    elif isinstance(seed, list):
        check_count("seed", len(seed), num_rows)
        drawn = seed
    elif seed is not None:
        drawn = [seed + row for row in range(num_rows)]
    else:
        where = generator.device if generator is not None else "cpu"
        drawn = torch.randint(2**62, (num_rows,), generator=generator, device=where).tolist()
    return CounterNoise(torch.tensor(drawn, device=device)[answers])
