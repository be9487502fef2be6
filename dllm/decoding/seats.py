"""How many rows are decoded at a time, in which order, and beside which others."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.cache import Cache
from dllm.decoding.batching import ContinuousBatch, continuous_batch
from dllm.decoding.memory_limits import Demand
from dllm.decoding.passes import Observer
from dllm.decoding.prompt_memory import PromptMemory
from dllm.decoding.room import Room
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise, Noise

FEW = 16  # prompts that stay as they were given, so that all of them can be watched
# Columns of a step beyond which more rows cost as much as they give. On a CPU activations leave
# its caches first; a device is bound by reading weights up to some thousands.
_ENOUGH = {"cpu": 384}
_ENOUGH_ELSEWHERE = 4096
_SHARE = 2  # a part of the free memory, for estimates are low and others use it too


@dataclass(frozen=True)
class Seating:
    """How rows of a list are to be decoded beside each other, as far as somebody said."""

    bound: int | None = None  # rows at a time, at most; None: what a step needs and memory holds
    continuous: bool = False  # rows enter one by one, whatever the cache
    elastic: bool = True  # seats may come and go with the rows
    watched: bool = True  # few prompts stay as they were given


def chosen_batch(
    canvas: Canvas, noise: CounterNoise, cache: Cache, demand: Demand, seating: Seating
) -> ContinuousBatch | None:
    """Returns the rows that are decoded first, the shortest, with the others waiting.

    None: all of them are decoded at once. Where nobody asked for it, prompts enter by themselves
    if a row that has just entered feeds no more columns than the others, else batch follows batch.
    Seats come and go with the rows, of which those beside each other are about as long.
    """
    layout, bound = demand.layout, seating.bound
    few = seating.watched and layout.num_rows <= FEW
    together = not (seating.continuous or cache.even)
    order = sorted(range(layout.num_rows), key=layout.lengths.__getitem__)
    if few and bound is not None:
        order = list(range(layout.num_rows))
    if few or not seating.elastic:
        seats = num_seats(cache, demand) if bound is None else bound
        if seats >= layout.num_rows:
            return None
        return continuous_batch(canvas, seats, noise, order, together)
    room = room_of(cache, demand) if bound is None else Room(min(bound, layout.num_rows))
    seats = room.entering((), map(layout.lengths.__getitem__, order))
    batch = continuous_batch(canvas, seats, noise, order, together)
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


def check_waiting(
    noise: Noise,
    seats: tuple[int, int],
    memory: PromptMemory | None,
    observer: Observer | None,
) -> CounterNoise:
    """Returns the noise, which tells prompts apart; raises ValueError where none can wait.

    `seats` are those there are, and the prompts that would wait for one.
    """
    where = f"batch_size={seats[0]} has {seats[1]} prompt(s) wait"
    if memory is not None:
        raise ValueError(
            f"{where}, and memory is of rows that are there from the start: leave one of them out, "
            "or give as many prompts as the batch has rows"
        )
    if observer is not None:
        raise ValueError(f"{where}, and passes are observed of one batch: leave batch_size out")
    if not isinstance(noise, CounterNoise):
        raise ValueError(
            f"{where}, and noise={type(noise).__name__} does not tell prompts apart: give "
            "seed instead, or leave batch_size out"
        )
    return noise
