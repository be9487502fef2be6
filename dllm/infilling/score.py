"""How well the text of a row's holes fits: the mean of its tokens' log probabilities.

Confidences at commit cannot be compared between rows: a scheduler may read margins or entropies,
a constraint leaves out what it forbids, and a token that comes first knows less than the last one.
So full rows are read once more by the model itself. Every second token of the holes is masked, then
the others: each is read with both its neighbours known, however long the hole is. Were all masked
at once, the middle of a long hole would be read without any neighbour, and the shortest would win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.cache.none import NoCache
from dllm.decoding.passes import Forward
from dllm.state.canvas import Canvas
from dllm.state.plan import PassKind
from dllm.state.progress import progress_of

_HALVES = 2


@dataclass(frozen=True)
class Full:
    """A row without masks, and the columns of its holes up to the end of its text."""

    tokens: list[int]
    prompt_length: int
    columns: list[int]


@torch.inference_mode()
def scores_of(rows: Sequence[Full], canvas: Canvas, forward: Forward) -> list[float]:
    """Returns the mean log probability of each row's columns, in nats, by the model's own logits.

    Passes have at most as many rows as the canvas that the rows were decoded on, or one row's two.
    """
    most, found = max(canvas.layout.num_rows // _HALVES, 1), []
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        found += _scores(part, _halves(part, canvas), forward)
    return found


def masked_logits(
    each: Sequence[tuple[Full, list[int]]],
    like: Canvas,
    forward: Forward,
    kind: PassKind | None = None,
) -> Tensor:
    """Returns logits (R, m, V) at columns of rows in which these are masked, by one pass.

    m is the most columns of a row; what stands behind those of others only fills up. `like` is a
    canvas that the rows could be decoded on, `kind` what the pass is counted as.
    """
    canvas, width = _canvas(each, like), max(len(columns) for _, columns in each)
    places = [
        [column - row.prompt_length for column in columns] + [0] * (width - len(columns))
        for row, columns in each
    ]
    return _logits(canvas, torch.tensor(places, device=like.tokens.device), forward, kind)


def _logits(
    canvas: Canvas, places: Tensor, forward: Forward, kind: PassKind | None = None
) -> Tensor:
    """Returns logits (R, m, V) at places (R, m) of a canvas, counted from the prompt's end."""
    plan = NoCache().plan(canvas, progress_of(canvas, None), forward.model.spec)
    known = torch.zeros_like(plan.logit_rows, dtype=torch.bool).scatter(1, places, True)
    logit_rows = plan.logit_rows.gather(1, places)
    plan = replace(
        plan,
        logit_rows=logit_rows,
        logit_columns=places,
        known=known,
        kind=plan.kind if kind is None else kind,
    )
    return forward(canvas.tokens, plan)


def _scores(rows: Sequence[Full], halves: _Halves, forward: Forward) -> list[float]:
    """Returns the scores of rows from one pass over the halves of all of them."""
    logits = _logits(halves.canvas, halves.places, forward).float()
    share = logits.log_softmax(-1).gather(-1, halves.targets[..., None])[..., 0]
    total = share.masked_fill(~halves.counted, 0).sum(1).unflatten(0, (len(rows), _HALVES)).sum(1)
    counts = [len(row.columns) for row in rows]
    return [whole / count for whole, count in zip(total.tolist(), counts, strict=True)]


@dataclass(frozen=True)
class _Halves:
    """Two canvas rows for each row: what one has in its holes the other has masked."""

    canvas: Canvas
    places: Tensor  # (2R, m) int64 masked columns, counted from the prompt's end
    targets: Tensor  # (2R, m) int64 the tokens that belong there
    counted: Tensor  # (2R, m) bool: the others only fill up


def _halves(rows: Sequence[Full], like: Canvas) -> _Halves:
    """Returns the halves of rows that were decoded on a canvas."""
    each = [(row, row.columns[half::_HALVES]) for row in rows for half in range(_HALVES)]
    canvas = _canvas(each, like)
    width = max(len(columns) for _, columns in each)
    places, targets, counted = [], [], []
    for row, columns in each:
        more = width - len(columns)
        places.append([column - row.prompt_length for column in columns] + [0] * more)
        targets.append([row.tokens[column] for column in columns] + [0] * more)
        counted.append([True] * len(columns) + [False] * more)
    tensors = (torch.tensor(one, device=like.tokens.device) for one in (places, targets, counted))
    return _Halves(canvas, *tensors)


def _canvas(each: Sequence[tuple[Full, list[int]]], like: Canvas) -> Canvas:
    """Returns a canvas of rows with masks at their columns, whose window are all its slots."""
    lengths = tuple(len(row.tokens) for row, _ in each)
    slots = max(len(row.tokens) - row.prompt_length for row, _ in each)
    layout = replace(
        like.layout,
        num_rows=len(each),
        num_columns=max(lengths),
        lengths=lengths,
        kept=lengths,
        num_slots=slots,
        block_length=slots,
        window_length=slots,
        region_length=slots,
        num_spare=0,
    )
    tokens = torch.full((len(each), layout.num_stored), layout.fill_token_id)
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    for number, (row, columns) in enumerate(each):
        tokens[number, : len(row.tokens)] = torch.tensor(row.tokens)
        masked[number, columns] = True
    tokens.masked_fill_(masked, layout.mask_token_id)
    starts = torch.tensor([row.prompt_length for row, _ in each])
    device = like.tokens.device
    return Canvas(layout, tokens.to(device), ~masked.to(device), starts.to(device))
