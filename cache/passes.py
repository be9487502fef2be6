"""The passes that caches plan: which columns are fed, which keys they see, and what is stored."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm.cache.base import Canvas, FirstToken, ModelSpec, Progress, StepPlan
from dllm.state.plan import PassKind
from dllm.state.standing import Number


def every_column(
    canvas: Canvas, spec: ModelSpec, store: bool, width: int | None = None
) -> StepPlan:
    """Returns the pass that feeds the first `width` columns; exact whatever the store holds.

    None: the whole canvas; `progress.length` leaves out what was cut off from all rows.
    """
    width = canvas.layout.num_columns if width is None else width
    columns = canvas.numbers[:width].expand(canvas.layout.num_rows, width)
    return _plan("refresh", columns, canvas, spec, store)


def without_hidden(plan: StepPlan, canvas: Canvas) -> StepPlan:
    """Returns the plan as if the columns of gaps that are not in use were not there."""
    if canvas.gap is None or canvas.room is None:
        return plan
    shown = ~canvas.hidden[:, None, : plan.num_keys]
    mask = shown if plan.attention_mask is None else plan.attention_mask & shown
    behind = plan.positions >= (canvas.prompt_length + canvas.room)[:, None]
    places = plan.positions - (canvas.room - canvas.gap)[:, None] * behind
    return replace(plan, attention_mask=mask, places=places)


def seen_up_to(length: Tensor, plan: StepPlan, canvas: Canvas, spec: ModelSpec) -> StepPlan:
    """Returns the plan in which keys up to each row's `length` (B,) are visible."""
    mask = _visible(plan.positions, plan.num_keys, length, canvas, spec)
    return replace(plan, attention_mask=mask)


def block_entry(
    canvas: Canvas, progress: Progress, spec: ModelSpec, first_token: FirstToken
) -> StepPlan:
    """Returns the refresh that begins a block; `force` makes it commit the first column only."""
    plan = every_column(canvas, spec, store=True, width=progress.length)
    if first_token == "feed":
        return plan
    first = canvas.columns() == canvas.block_start[:, None]
    return replace(plan, eligible=first, forced=torch.ones_like(canvas.finished))


def block_refresh(
    every: int | None, canvas: Canvas, progress: Progress, spec: ModelSpec, first_token: FirstToken
) -> StepPlan | None:
    """Returns the refresh that is due, of a block that begins or after `every` forwards, if any."""
    if progress.entered:
        return block_entry(canvas, progress, spec, first_token)
    if every is not None and progress.block_forwards % every == 0:
        return every_column(canvas, spec, store=True, width=progress.length)
    return None


def check_first_token(first_token: FirstToken, spec: ModelSpec) -> None:
    """Raises ValueError when `force` is asked of a model whose logits are not shifted."""
    if first_token == "force" and not spec.logit_shift:
        raise ValueError("first_token='force' is for models with shifted logits; use 'feed' here")


def columns_from(start: Tensor, width: int, canvas: Canvas, spec: ModelSpec) -> StepPlan:
    """Returns the pass that feeds `width` columns from `start` (B,) on and reads the store.

    Columns past the canvas are clamped to its last spare one, which nothing attends to.
    """
    last = canvas.tokens.shape[1] - 1
    columns = (start[:, None] + canvas.numbers[:width]).clamp(0, last)
    return _plan("step", columns, canvas, spec, store=True)


def predictors(wanted: Tensor, spec: ModelSpec) -> Tensor:
    """Returns the columns whose pass gives logits of the columns `wanted`, (B, C) bool."""
    if not spec.logit_shift:
        return wanted
    return torch.cat([wanted[:, 1:], torch.zeros_like(wanted[:, :1])], 1)


def chosen_columns(
    fed: Tensor, canvas: Canvas, progress: Progress, spec: ModelSpec, seen: Tensor | None = None
) -> StepPlan:
    """Returns the pass that feeds the columns `fed` (B, C) bool.

    At most `progress.num_fed` of a row; rows that feed fewer feed the last spare column again,
    which nothing attends to. Keys of the columns `seen` (B, C) bool are visible; None: all.
    """
    layout = canvas.layout
    columns, real = gathered(fed, progress.num_fed, canvas)
    number = canvas.numbers[: columns.shape[1]].expand_as(columns)
    fed_at = torch.zeros_like(canvas.tokens).scatter_(1, columns, number)
    predictor = canvas.columns()
    if spec.logit_shift:
        predictor = (predictor - spec.logit_shift).clamp(min=0)
    known = fed.gather(1, predictor)
    if spec.logit_shift:
        known = known & (canvas.columns() >= spec.logit_shift)
    mask = _visible(columns, layout.num_columns, None, canvas, spec)
    if seen is not None:
        seen = seen[:, None, : layout.num_columns]
        mask = seen if mask is None else seen & mask
    return StepPlan(
        kind="step",
        positions=columns,
        logit_rows=fed_at.gather(1, predictor),
        num_keys=layout.num_columns,
        attention_mask=mask,
        stored=_stored(columns, canvas).where(real, -1),
        known=known,
    )


def gathered(fed: Tensor, count: int, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Returns the columns `fed` (B, C) bool one behind the other, (B, count), and which are real.

    `count` is the most that a row has; the others end with the canvas' last spare column.
    """
    real, order = (one[:, :count] for one in fed.sort(dim=1, descending=True, stable=True))
    return torch.where(real, order, canvas.layout.num_stored - 1), real


def encoded_and_decoded(
    encoded: Tensor, stored: Tensor, decoded: Tensor, canvas: Canvas, num_keys: int | None = None
) -> StepPlan:
    """Returns the pass that encodes columns (B, q) and decodes columns (B, n) behind one another.

    `num_keys` are read of the store, where keys of the encoded ones are stored at `stored`; None:
    there is none, and the encoded columns are the first ones of each row. Tokens that became final
    together, those of the prompt first, see one another and those before; what is decoded sees the
    tokens before the row's block, and its own; blocks that were not begun see nothing of others.
    """
    num_keys = encoded.shape[1] if num_keys is None else num_keys
    part, real = _parts(canvas), canvas.numbers < canvas.length[:, None]
    keys, committed = part[:, :num_keys], canvas.numbers[:num_keys] < canvas.block_start[:, None]
    asks, shows = part.gather(1, encoded)[..., None], part.gather(1, decoded)
    before = real[:, None, :num_keys] & (keys[:, None] <= asks)
    context = (real[:, :num_keys] & committed)[:, None].expand(-1, decoded.shape[1], -1)
    same = (shows[:, None] == shows[..., None]) & real.gather(1, decoded)[:, None]
    itself = decoded[:, None] == decoded[..., None]  # padding sees something, too
    unseen = before.new_zeros(*before.shape[:2], decoded.shape[1])
    rows = [torch.cat([before, unseen], 2), torch.cat([context, same | itself], 2)]
    at, last = canvas.columns() - decoded[:, :1], decoded.shape[1] - 1
    return StepPlan(
        kind="step",
        positions=torch.cat([encoded, decoded], 1),
        logit_rows=at.clamp(0, last) + encoded.shape[1],
        num_keys=num_keys,
        attention_mask=torch.cat(rows, 1),
        stored=stored,
        known=(at >= 0) & (at <= last),
    )


def clean_and_noisy(plan: StepPlan, context: Tensor, length: Tensor, block: int) -> StepPlan:
    """Returns the pass that encodes all columns of a plan, and decodes them all behind.

    As E2D2 was trained: the encoder's columns see their block, those before it and all of the
    `context` (B,), the decoder's see their own noisy block and the clean ones before it. Rows end
    at `length` (B,).
    """
    columns, part = plan.positions, plan.positions // block
    real, given = ((columns < end[:, None])[:, None] for end in (length, context))
    before, same = part[:, None] < part[..., None], part[:, None] == part[..., None]
    itself = columns[:, None] == columns[..., None]  # padding sees something, too
    encoder = torch.cat([real & (before | same | given), torch.zeros_like(same)], 2)
    decoder = torch.cat([real & before, real & same | itself], 2)
    return replace(
        plan,
        positions=torch.cat([columns, columns], 1),
        logit_rows=plan.logit_rows + columns.shape[1],
        attention_mask=torch.cat([encoder, decoder], 1),
        stored=columns,
    )


def _parts(canvas: Canvas) -> Tensor:
    """Returns with which others each column is encoded, (B, C) int64, in their order.

    The prompt, each block that was begun, and what the next ones will be.
    """
    begun = (canvas.block_entry >= 0).cumsum(1)
    beyond = (canvas.numbers - canvas.block_start[:, None]).clamp(min=0)
    return begun + beyond.div(canvas.layout.window_length, rounding_mode="floor")


def _plan(
    kind: PassKind, columns: Tensor, canvas: Canvas, spec: ModelSpec, store: bool
) -> StepPlan:
    num_keys = canvas.layout.num_columns if store else columns.shape[1]
    logit_rows = canvas.columns() - spec.logit_shift - columns[:, :1]  # of contiguous columns
    last = columns.shape[1] - 1
    return StepPlan(
        kind=kind,
        positions=columns,
        logit_rows=logit_rows.clamp(0, last),
        num_keys=num_keys,
        attention_mask=_visible(columns, num_keys, None, canvas, spec),
        stored=_stored(columns, canvas) if store else None,
        known=None if kind == "refresh" else (logit_rows >= 0) & (logit_rows <= last),
    )


def _stored(columns: Tensor, canvas: Canvas) -> Tensor:
    """Returns at which columns the keys of fed columns (B, Q) are kept; -1: cut off, not kept."""
    if not canvas.layout.can_shorten:
        return columns
    return torch.where(columns < canvas.length[:, None], columns, -1)


def _visible(
    columns: Tensor, num_keys: int, length: Tensor | None, canvas: Canvas, spec: ModelSpec
) -> Tensor | None:
    """Returns which keys each fed column sees, (B, 1 or Q, K) bool; None if all."""
    if spec.attention == "full" and length is None and not canvas.layout.ragged:
        return None
    length = canvas.length if length is None else length

    def keys_before(length: Tensor, num_keys: int) -> Tensor:
        return canvas.numbers[:num_keys] < length[:, None, None]

    real: Tensor = canvas.keep("real", keys_before, length, num_keys)
    if spec.attention == "full":
        return real
    if spec.attention == "masks_last":
        return real & masks_last(canvas.masked, columns, num_keys)
    if spec.attention == "causal_context":
        # Not of the window: a method may look further, by as much as the longest row asks for.
        reach = canvas.block_start + canvas.layout.block_length
        return real & causal_context(columns, num_keys, canvas.block_start, reach)
    return real & block_causal(columns, num_keys, canvas.prompt_length, spec)


def block_causal(columns: Tensor, num_keys: int, prompt: Tensor, spec: ModelSpec) -> Tensor:
    """Returns which keys fed columns (B, Q) see where blocks see themselves and those before.

    (B, Q, K) bool; `prompt` (B,) is where a block begins in models that count from there. In a
    causal model each column is a block.
    """
    keys = torch.arange(num_keys, device=columns.device)
    block = spec.block_length if spec.attention == "block_causal" else 1
    assert block is not None
    if spec.blocks_from == "prompt":
        lack = lacking(prompt, block)[:, None]
        keys, columns = keys + lack[..., None], columns + lack
    return keys // block <= columns[..., None] // block


def lacking(start: Number, block: int) -> Number:
    """Returns how many columns the first block lacks if one begins at `start`."""
    return -start % block


def causal_context(columns: Tensor, num_keys: int, start: Tensor, end: Tensor) -> Tensor:
    """Returns which keys fed columns (B, Q) see where a block follows a causal context, (B, Q, K).

    A column sees those up to itself; one from `start` (B,) on also all of the block up to `end`.
    """
    keys, columns = torch.arange(num_keys, device=columns.device), columns[..., None]
    in_block = (columns >= start[:, None, None]) & (keys < end[:, None, None])
    return (keys <= columns) | in_block


def masks_last(masked: Tensor, columns: Tensor, num_keys: int) -> Tensor:
    """Returns which keys fed columns (B, Q) see where masks stand behind all tokens, (B, Q, K).

    `masked` (B, C) bool are the columns that hold masks. A token sees the tokens up to itself; a
    mask sees all tokens, also those to its right, and the masks up to itself.
    """
    keys = torch.arange(num_keys, device=columns.device)
    before, token = keys <= columns[..., None], ~masked[:, None, :num_keys]
    asks = masked.gather(1, columns)[..., None]
    return torch.where(asks, token | before, token & before)
