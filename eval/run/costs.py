"""What each answer cost: its share of every pass that its row was under way in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter

from dllm.metrics import Meter
from dllm.state.event import StepEvent


@dataclass(frozen=True)
class Spent:
    """Time and work of a batch, or of a row of it."""

    seconds: float = 0.0
    rows_fed: float = 0.0
    tokens_fed: float = 0.0
    flops: float = 0.0

    def plus(self, other: Spent, times: float = 1.0) -> Spent:
        """Returns the sum of this and a multiple of another."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Spent(*(ours + times * theirs for ours, theirs in pairs))


@dataclass(frozen=True)
class Share:
    """What one answer cost."""

    spent: Spent  # shares of its steps
    first: float  # seconds of them that its first step took
    latency: float  # seconds from the beginning of its first step to the end of its last


@dataclass(frozen=True)
class _Beginning:
    before: Spent  # a row's share of all steps so far, had it been there from the start
    clock: float  # seconds of all steps so far
    first: float


class Shares:
    """Divides each step evenly among the rows that were under way in it.

    So the shares of all answers add up to what was spent, places that nobody was left for
    included. The clock stands still between two steps, while answers are judged and written.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._total = Spent()
        self._each = Spent()  # of a row that is under way from the first step on
        self._begun: dict[int, _Beginning] = {}
        self._ended: set[int] = set()

    def watch(self, events: Iterable[StepEvent]) -> Iterator[StepEvent]:
        """Yields the events of a generation, each when its step has been divided."""
        steps = iter(events)
        while True:
            start = perf_counter()
            event = next(steps, None)
            if event is None:
                return
            self._divide(event, perf_counter() - start)
            yield event

    def of(self, prompt: int) -> Share:
        """Returns what a prompt's row cost; right after the step that finished it."""
        begun = self._begun.get(prompt)
        if begun is None:  # it had nothing to fill
            return Share(Spent(), 0.0, 0.0)
        spent = self._each.plus(begun.before, -1)
        return Share(spent, begun.first, self._total.seconds - begun.clock)

    def _divide(self, event: StepEvent, seconds: float) -> None:
        meter = self._meter
        seconds += self._total.seconds
        total = Spent(seconds, meter.rows_fed, meter.tokens_fed, meter.flops)
        step = total.plus(self._total, -1)
        running = [prompt for prompt in event.prompts if prompt not in self._ended]
        for prompt in running:
            if prompt not in self._begun:
                first = step.seconds / len(running)
                self._begun[prompt] = _Beginning(self._each, self._total.seconds, first)
        self._total, self._each = total, self._each.plus(step, 1 / len(running))
        self._ended.update(event.finished)
