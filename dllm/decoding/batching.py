"""Who is in the canvas: finished rows leave it, and waiting prompts take their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm.schedulers.view import State
from dllm.state.canvas import Canvas
from dllm.state.noise import CounterNoise
from dllm.state.plan import StepPlan
from dllm.state.settle import settle
from dllm.state.status import Feeds, Status, statuses_of
from dllm.state.variants import no_branches

# Of all rows alike; and a row's first pass feeds everything, whatever was announced.
_SHARED = ("ends", "numbers", "announced")
_IN_PLACE = ("tokens", "given")  # others keep them across steps, guidance for one


@dataclass
class Admission:
    """Gives the places of finished rows to the prompts that wait, in their order.

    `everyone` has a row for each prompt: as it is before its first step, and again once it left.
    All that a row is lives in tensors with one entry a row, so that to enter is to copy these, and
    nothing of the row that was there before is left but its stored keys, which are never read: a
    first pass feeds all that it sees.
    """

    everyone: Canvas
    canvas: Canvas  # the rows that are decoded
    noise: CounterNoise  # of everyone
    seated: CounterNoise  # of the rows that are decoded
    occupants: list[int]  # the prompt at each place
    waiting: deque[int] = field(default_factory=deque)
    _told: list[Status] = field(default_factory=list)  # of each row before its first step
    _state: State = field(default_factory=dict)  # of one row before its first step

    def begin(self, feeds: Feeds | None) -> None:
        """Brings waiting rows to their first block; those without any slot to fill never enter."""
        settle(self.everyone, lockstep=False, at_eos="ignore")
        self._told = statuses_of(self.everyone, feeds)
        self.waiting = deque(row for row in self.waiting if self._told[row].unfinished)

    def remember(self, state: State) -> None:
        """Keeps what a scheduler starts with; at the start all rows are alike."""
        self._state = {name: value[:1].clone() for name, value in state.items()}

    def enter(self, status: Status) -> tuple[Status, Tensor | None]:
        """Fills the places of finished rows; returns the new status and the places (n,), if any."""
        free = [place for place, done in enumerate(status.finished) if done]
        free = free[: len(self.waiting)]
        if not free:
            return status, None
        prompts = [self.waiting.popleft() for _ in free]
        self.save()
        places, rows = self._on_device(free), self._on_device(prompts)
        self._write(places, rows)
        for place, prompt in zip(free, prompts, strict=True):
            self.occupants[place] = prompt
        seated = [place in free for place in range(len(self.occupants))]
        stays = tuple(a and not b for a, b in zip(status.finished, seated, strict=True))
        told = [self._told[prompt] for prompt in prompts]
        return replace(status, finished=stays).joined(told), places

    @torch.inference_mode()
    def save(self) -> None:
        """Copies the rows that are decoded to where their prompts stand among all."""
        for name, held in _by_row(self.canvas).items():
            vars(self.everyone)[name].index_copy_(0, self.canvas.prompts, held)
        if self.canvas.drafts is not None:
            self.everyone.drafts = self.canvas.drafts.filed(
                self.everyone.drafts, self.canvas.prompts, len(self.everyone.tokens)
            )

    def restarted(self, state: State, places: Tensor) -> State:
        """Returns the state in which the rows at some places (n,) are at their beginning."""

        def begun(name: str, value: Tensor) -> Tensor:
            fresh = self._state[name].expand(len(places), *value.shape[1:])
            return value.index_copy(0, places, fresh)

        return {name: begun(name, value) for name, value in state.items()}

    def _write(self, places: Tensor, rows: Tensor) -> None:
        canvas = self.canvas
        for name, held in _by_row(canvas).items():
            entering = vars(self.everyone)[name][rows]
            if name in _IN_PLACE:
                held.index_copy_(0, places, entering)
            else:  # two names may stand for one tensor
                setattr(canvas, name, held.index_copy(0, places, entering))
        if canvas.branches is not None:
            num_rows, count = canvas.branches.columns.shape
            none = no_branches(num_rows, count, places.device)
            seated = torch.zeros_like(canvas.finished).index_fill(0, places, True)
            canvas.branches = canvas.branches.merge(none, seated)
        canvas.seen = None  # caches that go by it let prompts in when nobody is left
        self.seated.seeds.index_copy_(0, places, self.noise.seeds[rows])

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self.canvas.tokens.device)


def admission_of(everyone: Canvas, num_places: int, noise: CounterNoise) -> Admission:
    """Returns a canvas of the first rows, with the others waiting."""
    first = torch.arange(num_places, device=everyone.tokens.device)
    canvas = everyone.copy()
    for name, held in _by_row(canvas).items():
        setattr(canvas, name, held[first])
    canvas.layout = replace(everyone.layout, num_rows=num_places)
    return Admission(
        everyone=everyone.copy(),
        canvas=canvas,
        noise=noise,
        seated=noise.of_rows(first),
        occupants=list(range(num_places)),
        waiting=deque(range(num_places, len(everyone.tokens))),
    )


def kept_for(places: Tensor, plans: Iterator[StepPlan], canvas: Canvas) -> Iterator[StepPlan]:
    """Yields passes that store keys of the rows at some places (n,) alone."""
    chosen = torch.zeros_like(canvas.finished).index_fill(0, places, True)[:, None]
    scratch = canvas.layout.num_rows * canvas.layout.num_stored
    for plan in plans:
        assert plan.slots is not None
        yield replace(plan, slots=plan.slots.where(chosen, scratch))


def _by_row(canvas: Canvas) -> dict[str, Tensor]:
    """Returns the tensors of a canvas that have an entry a row, by name."""
    held = {name: value for name, value in vars(canvas).items() if isinstance(value, Tensor)}
    return {name: value for name, value in held.items() if name not in _SHARED}
