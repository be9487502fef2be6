"""Continuous batching: finished rows leave the canvas, and waiting prompts take their seats."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from dllm.decoding.prompt_memory import SeatMemory
from dllm.decoding.room import Room
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise
from dllm.state.progress import Feeds, Progress, progress_of_rows, settle
from dllm.state.rows import file_rows, number_row, part_aliases, reseat, rows_at, seat_rows
from dllm.state.store import KVStore

_AHEAD = 256  # rows that wait, of which the host learns in one transfer
_FEW = 16  # seats of which a single free one is kept; of fewer seats none is


class Batch(Protocol):
    """What gives the seats of finished rows to others."""

    @property
    def prompts(self) -> tuple[int, ...]:
        """The prompt at each seat."""
        ...

    @property
    def num_seats(self) -> int:
        """The most rows that are decoded at a time."""
        ...

    def begin(self, feeds: Feeds | None, store: KVStore | None) -> None:
        """Is told once, before the first step, what counts the columns that passes feed."""
        ...

    def enter(self, progress: Progress) -> tuple[Progress, Tensor | None]:
        """Fills the seats of finished rows; returns the new progress and the seats (n,), if any."""
        ...

    def leave(self, progress: Progress) -> Progress:
        """May take the seats of finished rows away where none can enter; returns the progress."""
        ...


@dataclass
class ContinuousBatch:
    """Gives the seats of finished rows to the prompts that wait, in their order.

    `all_rows` has a row for each prompt: as it is before its first step, and again once it left.
    To enter is to copy a row, and nothing of the row that was there before is left but its stored
    keys, which are never read: a first pass feeds all that it sees.
    """

    all_rows: Canvas
    canvas: Canvas  # the rows that are decoded
    all_noise: CounterNoise
    noise: CounterNoise  # of the rows that are decoded
    prompt_ids: list[int]  # the prompt at each seat
    together: bool = False  # prompts enter when all rows are finished
    waiting: deque[int] = field(default_factory=deque)
    room: Room | None = None  # there are seats for these rows; None: always as many as at first
    _first: dict[int, Progress] = field(default_factory=dict)  # of the next rows to enter
    _feeds: Feeds | None = None
    _store: KVStore | None = None
    _every: int = 1  # rows of the store for each row
    _taken: bool = False  # seats were taken away since it was last seen who can enter

    @property
    def prompts(self) -> tuple[int, ...]:
        """The prompt at each seat."""
        return tuple(self.prompt_ids)

    @property
    def num_seats(self) -> int:
        """The most rows that are decoded at a time."""
        return self.canvas.layout.num_rows if self.room is None else self.room.num_rows

    def begin(self, feeds: Feeds | None, store: KVStore | None) -> None:
        """Brings waiting rows to their first block; those without any slot to fill never enter."""
        for rows in self.all_rows.prompts.split(_AHEAD):  # in parts, for what is made on the way
            some = rows_at(self.all_rows, rows)
            settle(some, lockstep=False, at_eos="ignore")
            file_rows(some, self.all_rows)
        finished = self.all_rows.finished.tolist()
        self.waiting = deque(row for row in self.waiting if not finished[row])
        self._feeds, self._store = feeds, store
        self._read_ahead([])
        if self.room is not None and store is not None:
            seats = torch.arange(self.canvas.layout.num_rows, device=self.canvas.tokens.device)
            self._every = store.shape.num_rows // self.num_seats
            store.reseat(seats, (), self._every)

    def enter(self, progress: Progress) -> tuple[Progress, Tensor | None]:
        """Fills the seats of finished rows; returns the new progress and the seats (n,), if any."""
        count = 0 if self.together and progress.unfinished else self._num_entering(progress)
        if not count:
            return self._left(progress), None
        self.save()
        entering = [self.waiting.popleft() for _ in range(count)]
        if self.room is not None:
            progress = self._rearranged(progress, count)
        free = [seat for seat, done in enumerate(progress.finished) if done][:count]
        seats, rows = self._on_device(free), self._on_device(entering)
        seat_rows(self.canvas, seats, self.all_rows, rows)
        self.noise.seeds.index_copy_(0, seats, self.all_noise.seeds[rows])
        for seat, prompt in zip(free, entering, strict=True):
            self.prompt_ids[seat] = prompt
        finished = tuple(done and seat not in free for seat, done in enumerate(progress.finished))
        self._read_ahead(entering)
        first = [self._first.pop(prompt) for prompt in entering]
        return replace(progress, finished=finished).joined(first), seats

    def leave(self, progress: Progress) -> Progress:
        """Takes the seats of finished rows away, if they are not few and some row goes on."""
        left = self._left(progress)
        self._taken = self._taken or left is not progress
        return left

    def _left(self, progress: Progress) -> Progress:
        """Takes those seats away, where it has been seen that nobody can enter."""
        free, rows = sum(progress.finished), len(progress.finished)
        if self.room is None or not progress.unfinished or free * _FEW < rows:
            return progress
        self.save()
        return self._rearranged(progress, 0)

    def _read_ahead(self, entering: list[int]) -> None:
        """Reads the figures of rows before their first step, once those read before are used up."""
        if all(row in self._first for row in entering) and (self._first or not self.waiting):
            return
        rows = [*entering, *islice(self.waiting, _AHEAD)]
        figures = progress_of_rows(rows_at(self.all_rows, self._on_device(rows)), self._feeds)
        self._first = dict(zip(rows, figures, strict=True))

    def _num_entering(self, progress: Progress) -> int:
        """Returns how many of those that wait can enter now."""
        if self.room is None:
            return min(sum(progress.finished), len(self.waiting))
        if not (self.waiting and (self._taken or any(progress.finished))):  # as in most steps
            return 0
        self._taken = False
        lengths = self.canvas.layout.lengths
        seated = zip(self.prompt_ids, progress.finished, strict=True)
        under_way = [lengths[prompt] for prompt, done in seated if not done]
        return self.room.entering(under_way, map(lengths.__getitem__, self.waiting))

    def _rearranged(self, progress: Progress, more: int) -> Progress:
        """Keeps the rows that go on and `more` free seats, which are marked as finished.

        Of the rows only those move that were behind what is left.
        """
        done = progress.finished
        going = [seat for seat, over in enumerate(done) if not over]
        count = len(going) + more
        behind, stay = [seat for seat in going if seat >= count], set(going)
        free = [seat for seat in range(count) if seat not in stay]
        seats = list(range(count))
        for place, seat in zip(free, behind, strict=False):
            seats[place] = seat
        empty = free[len(behind) :]
        for place in empty:
            seats[place] = 0  # of which nothing is read
        if count != len(done):
            self._reseat(seats, tuple(free[: len(behind)]))
        return replace(progress, finished=tuple(place in set(empty) for place in range(count)))

    def _reseat(self, seats: list[int], moved: tuple[int, ...]) -> None:
        """Has place i hold the row of seat `seats[i]`; `moved` are places that hold another's."""
        self.prompt_ids[:] = [self.prompt_ids[seat] for seat in seats]
        kept = self._on_device(seats)
        reseat(self.canvas, kept)
        self.noise.seeds = self.noise.seeds[kept]
        if self._store is not None:
            self._store.reseat(kept, moved, self._every)

    @torch.inference_mode()
    def save(self) -> None:
        """Copies the rows that are decoded to where their prompts stand among all."""
        file_rows(self.canvas, self.all_rows)

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self.canvas.tokens.device)


def continuous_batch(
    all_rows: Canvas,
    num_seats: int,
    noise: CounterNoise,
    order: Sequence[int] | None = None,
    together: bool = False,
) -> ContinuousBatch:
    """Returns a canvas of the first rows of an order, with the others waiting.

    None: their own order. `together` has batch follow batch. The canvas of all rows is taken over:
    they are many, so that no second one is made.
    """
    order = range(len(all_rows.tokens)) if order is None else order
    first = torch.tensor(order[:num_seats], device=all_rows.tokens.device)
    part_aliases(all_rows)
    return ContinuousBatch(
        all_rows=all_rows,
        canvas=rows_at(all_rows, first),
        all_noise=noise,
        noise=noise.of_rows(first),
        prompt_ids=list(order[:num_seats]),
        together=together,
        waiting=deque(order[num_seats:]),
    )


@dataclass(frozen=True)
class Entering:
    """A row that comes while others are decoded: a canvas of its own, as wide as theirs."""

    number: int  # what events call it
    canvas: Canvas  # of one row, before its first step
    seed: int


@dataclass(frozen=True)
class Opening:
    """What an open batch is told: its columns, and who gives it rows that wait."""

    num_columns: int
    take: Callable[[int], Sequence[Entering]]  # at most so many rows


@dataclass
class OpenBatch:
    """Gives the seats of finished rows to rows that nobody knew of when the batch began.

    The same as `ContinuousBatch` but for its end, which there is none of: whoever drives the loop
    reads a row's answer before its seat is taken.
    """

    canvas: Canvas  # the rows that are decoded
    noise: CounterNoise  # of these
    take: Callable[[int], Sequence[Entering]]
    prompt_ids: list[int]  # the number of the row at each seat
    shared: SeatMemory | None = None  # hands stored keys on; None: they are not final
    # Of rows that entered, by number: columns that they took over; whoever reads it takes it out.
    reused: dict[int, int] = field(default_factory=dict)
    _feeds: Feeds | None = None

    @property
    def prompts(self) -> tuple[int, ...]:
        """The number of the row at each seat."""
        return tuple(self.prompt_ids)

    @property
    def num_seats(self) -> int:
        """The rows that are decoded at a time, finished ones included."""
        return self.canvas.layout.num_rows

    def leave(self, progress: Progress) -> Progress:
        """Keeps all seats, for rows may come at any time."""
        return progress

    def begin(self, feeds: Feeds | None, store: KVStore | None) -> None:
        """Notes what counts the columns that passes feed, and where keys are stored."""
        self._feeds = feeds
        if self.shared is not None:
            self.shared.store = store

    def enter(self, progress: Progress) -> tuple[Progress, Tensor | None]:
        """Fills the seats of finished rows; returns the new progress and the seats (n,), if any."""
        free = [seat for seat, done in enumerate(progress.finished) if done]
        entering = self.take(len(free)) if free else ()
        if not entering:
            return progress, None
        free, device = free[: len(entering)], self.canvas.tokens.device
        seats = torch.tensor(free, device=device)
        if self.shared is not None:
            counts = self.shared.hand_over(self.canvas, free, [row.canvas for row in entering])
            self.reused |= {row.number: n for row, n in zip(entering, counts, strict=True)}
        first: list[Progress] = []
        alone = torch.zeros(1, dtype=torch.int64, device=device)
        for place, row in zip(seats.split(1), entering, strict=True):
            settle(row.canvas, lockstep=False, at_eos="ignore")
            number_row(row.canvas, row.number)
            first += progress_of_rows(row.canvas, self._feeds)
            seat_rows(self.canvas, place, row.canvas, alone)
        for seat, row in zip(free, entering, strict=True):
            self.prompt_ids[seat] = row.number
        seeds = torch.tensor([row.seed for row in entering], device=device)
        self.noise.seeds.index_copy_(0, seats, seeds)
        finished = tuple(done and seat not in free for seat, done in enumerate(progress.finished))
        return replace(progress, finished=finished).joined(first), seats
