"""How many rows are decoded at a time, and in which order, where nobody says."""

from __future__ import annotations

from dllm.cache import Cache
from dllm.decoding.batching import ContinuousBatch, continuous_batch
from dllm.decoding.memory_limits import Demand
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise

FEW = 16  # prompts that are one batch, so that all of them can be watched
# Columns of a step beyond which more rows cost as much as they give. On a CPU activations leave
# its caches first; a device is bound by reading weights up to some thousands.
_ENOUGH = {"cpu": 384}
_ENOUGH_ELSEWHERE = 4096
_SHARE = 2  # a part of the free memory, for estimates are low and others use it too


def chosen_batch(
    canvas: Canvas, noise: CounterNoise, cache: Cache, demand: Demand
) -> ContinuousBatch | None:
    """Returns the rows that are decoded first, the shortest, with the others waiting.

    None: all of them are decoded at once. Prompts enter by themselves where a row that has just
    entered feeds no more columns than the others, else batch follows batch.
    """
    layout = canvas.layout
    seats = num_seats(cache, demand)
    if seats >= layout.num_rows:
        return None
    order = sorted(range(layout.num_rows), key=layout.lengths.__getitem__)
    return continuous_batch(canvas, seats, noise, order, together=not cache.even)


def num_seats(cache: Cache, demand: Demand) -> int:
    """Returns how many rows are decoded at a time: what a step needs, if that fits into memory."""
    layout, device = demand.layout, demand.meter.device
    fits = demand.largest_batch()
    most = layout.num_rows if fits is None else max(fits // _SHARE, 1)
    if layout.num_rows <= FEW:
        return min(layout.num_rows, most)
    width = layout.width if cache.uses_store else layout.num_columns
    enough = _ENOUGH.get(device.type, _ENOUGH_ELSEWHERE)
    return min(max(enough // (width * demand.num_variants), 1), most)
