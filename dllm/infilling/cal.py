"""Calibrated adaptive length (CAL, 2602.00476): the length of a hole before anything is decoded.

With a hole of l masks between its texts, phi(l) is the mean over the masks of the probability of
their best token. It falls with l whatever the text is, by a bias B(l) that the authors fitted once;
the length is where phi(l) / B(l) is highest on a walk from `START`: upwards until `PATIENCE`
lengths in a row are no better, then downwards in the same way. Rule and constants are those of
NiuHechang/Calibrated_Adaptive_Length, llada_cal/llada_cal.py, which uses them for other models too.
There each length of the walk is a pass; here all lengths are rows of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from time import perf_counter

import torch

from dllm.decoding.passes import Forward
from dllm.infilling.score import Full, masked_logits
from dllm.output import Tried
from dllm.prompts import Row
from dllm.state.canvas import Canvas

START, MOST, PATIENCE = 8, 64, 4  # tokens; lengths
LENGTHS = tuple(range(1, MOST + 1))


def bias(length: int) -> float:
    """Returns B(l): what phi(l) is of on the average, by length alone."""
    return math.exp(-1.77 * length) + 0.56 * math.exp(-0.06 * length) + 0.24


def climb(scores: Mapping[int, float]) -> int:
    """Returns the length that the walk over scores by length, 1 to `MOST`, ends at."""
    best = START
    for walk in (range(START + 1, MOST + 1), range(START - 1, 0, -1)):
        worse = 0
        for length in walk:
            if scores[length] > scores[best]:
                best, worse = length, 0
            else:
                worse += 1
            if worse == PATIENCE:
                break
    return best


def choose_lengths(
    rows: Sequence[Row], like: Canvas, forward: Forward
) -> tuple[list[Row], dict[int, tuple[Tried, ...]]]:
    """Returns the rows that are decoded, and by answer the lengths that were probed for it.

    Of answers with a hole whose length is probed the row of the chosen one stays. `like` is a
    canvas of all rows. Each answer is one pass, of kind "probe".
    """
    started = perf_counter()
    kept: list[Row] = []
    probed: dict[int, list[Row]] = {}
    for row in rows:
        if row.laid is not None and row.laid.probed:
            probed.setdefault(row.laid.answer, []).append(row)
        else:
            kept.append(row)
    tried: dict[int, tuple[Tried, ...]] = {}
    for answer, some in probed.items():
        confidences = _confidences(some, like, forward)
        scores = {n: one / bias(n) for n, one in zip(LENGTHS, confidences, strict=True)}
        kept.append(some[climb(scores) - 1])
        tried[answer] = tuple(Tried((n,), score) for n, score in scores.items())
    forward.meter.probing += perf_counter() - started
    return sorted(kept, key=_answer), tried


@torch.inference_mode()
def _confidences(rows: Sequence[Row], like: Canvas, forward: Forward) -> list[float]:
    """Returns phi of each row, all of which are fed in one pass."""
    full = []
    for row in rows:
        assert row.laid is not None
        (gap,), start = row.laid.gaps, len(row.prompt)
        columns = list(range(start + gap.start, start + gap.stop))
        full.append(Full([*row.prompt, *row.slots], start, columns))
    logits = masked_logits([(one, one.columns) for one in full], like, forward, kind="probe")
    found = [
        # Row by row, since in float32 the logits of all of them would be twice as large.
        (one.float().amax(-1) - one.float().logsumexp(-1)).exp()[: len(row.columns)].mean()
        for one, row in zip(logits, full, strict=True)
    ]
    return [float(one) for one in torch.stack(found).tolist()]


def _answer(row: Row) -> int:
    assert row.laid is not None
    return row.laid.answer
