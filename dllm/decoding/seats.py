"""How many rows are decoded at a time, and in which order, where nobody says."""

from __future__ import annotations

from dllm.cache import Cache
from dllm.decoding.batching import ContinuousBatch, continuous_batch
from dllm.decoding.memory_limits import Demand
from dllm.decoding.room import Room
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise

FEW = 16  # prompts that are one batch, so that all of them can be watched
# Columns of a step beyond which more rows cost as much as they give. On a CPU activations leave
# its caches first; a device is bound by reading weights up to some thousands.
_ENOUGH = {"cpu": 384}
_ENOUGH_ELSEWHERE = 4096
_SHARE = 2  # a part of the free memory, for estimates are low and others use it too


def chosen_batch(
    canvas: Canvas, noise: CounterNoise, cache: Cache, demand: Demand, elastic: bool = True
) -> ContinuousBatch | None:
    """Returns the rows that are decoded first, the shortest, with the others waiting.

    None: all of them are decoded at once. Prompts enter by themselves where a row that has just
    entered feeds no more columns than the others, else batch follows batch. `elastic` has seats
    come and go with the rows, of which those beside each other are about as long.
    """
    layout = canvas.layout
    order = sorted(range(layout.num_rows), key=layout.lengths.__getitem__)
    seats, room = num_seats(cache, demand), None
    if elastic and layout.num_rows > FEW:
        room = room_of(cache, demand)
        seats = room.entering((), map(layout.lengths.__getitem__, order))
    elif seats >= layout.num_rows:
        return None
    batch = continuous_batch(canvas, seats, noise, order, together=not cache.even)
    batch.room = room
    return batch


def num_seats(cache: Cache, demand: Demand) -> int:
    """Returns how many rows are decoded at a time: what a step needs, if that fits into memory."""
    layout, room = demand.layout, room_of(cache, demand)
    if layout.num_rows <= FEW:
        return min(layout.num_rows, room.num_rows)
    return min(max(room.num_columns // (room.width or layout.num_columns), 1), room.num_rows)


def room_of(cache: Cache, demand: Demand) -> Room:
    """Returns the rows that are decoded beside each other, as far as they fit into memory."""
    layout, device = demand.layout, demand.meter.device
    fits = demand.largest_batch()
    most = layout.num_rows if fits is None else max(fits // _SHARE, 1)
    columns = _ENOUGH.get(device.type, _ENOUGH_ELSEWHERE) // demand.num_variants
    if not cache.uses_store:
        return Room(min(most, layout.num_rows), columns)
    seats = most if layout.num_rows <= FEW else max(columns // layout.width, 1)
    return Room(min(most, seats, layout.num_rows), columns, layout.width)
