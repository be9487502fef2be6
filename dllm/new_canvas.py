"""A canvas for prompts: how wide it is, its blocks, and which slots are open."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dllm.models.model import DenoisingModel
from dllm.prompts import Row
from dllm.schedulers import Needs
from dllm.settings import DEFAULT_BLOCK_LENGTH, Settings
from dllm.state.canvas import Canvas
from dllm.state.layout import Layout


def canvas_of(
    model: DenoisingModel, rows: list[Row], settings: Settings, block: int, needs: Needs
) -> Canvas:
    """Returns the canvas of encoded prompts; `needs` are those of its scheduler."""
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


def new_canvas(
    layout: Layout,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[Sequence[int]],
    device: torch.device,
) -> Canvas:
    """Returns a canvas of prompts followed by slots; a slot that holds the mask id is open."""
    width = layout.num_stored
    rows = [[*prompt, *slot] for prompt, slot in zip(prompts, slots, strict=True)]
    padded = [row + [layout.fill_token_id] * (width - len(row)) for row in rows]
    tokens = torch.tensor(padded, dtype=torch.int64)
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    generated = torch.arange(width) >= prompt_length[:, None]
    fixed = ~(generated & (tokens == layout.mask_token_id))
    return Canvas(layout, tokens.to(device), fixed.to(device), prompt_length.to(device))


def block_length_of(
    model: DenoisingModel, settings: Settings, num_slots: int, rows: list[Row]
) -> int:
    """Returns the columns decoded together; raises ValueError where they do not suit the rows."""
    trained = model.spec.block_length
    block = settings.block_length or trained or min(DEFAULT_BLOCK_LENGTH, num_slots)
    _check_block(block, num_slots, rows, settings, model)
    return block


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
