"""The lines of a report: settings that were measured, which of them compare, and which lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from dllm.eval.run.results import Result
from dllm.eval.run.summary import Summary, summarise
from dllm.eval.tasks.task import Problem

Speed = Literal["tokens_per_forward", "tokens_per_second"]
SPEEDS: tuple[Speed, ...] = ("tokens_per_forward", "tokens_per_second")
Group = tuple[str, str, int]  # model, task and number of new tokens


@dataclass(frozen=True)
class Candidate:
    """A setting that is to be measured on problems."""

    number: int  # of its line, from 1
    name: str  # unlike any other
    curve: str  # of a plot
    mark: str  # its text in a plot
    subject: tuple[str, str]  # model and task
    problems: Sequence[Problem]
    is_baseline: bool = field(default=False, kw_only=True)  # drawn in black


C = TypeVar("C", bound=Candidate, covariant=True)


@dataclass(frozen=True)
class Line(Generic[C]):
    """A candidate as it was measured: all its results, a part of them, or a refusal."""

    candidate: C
    results: Sequence[Result] = ()
    refusal: str | None = None

    @cached_property
    def summary(self) -> Summary | None:
        """The summary of the results, None without any."""
        return summarise(self.results) if self.results else None

    @property
    def number(self) -> int:
        return self.candidate.number

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def curve(self) -> str:
        return self.candidate.curve

    @property
    def state(self) -> str:
        """Why figures are missing or cannot be compared; empty for a finished line.

        Of fewer problems only the shortest were answered, which compares badly.
        """
        if self.refusal is not None:
            return f"refused: {self.refusal}"
        if len(self.results) < len(self.candidate.problems):
            return f"incomplete: {len(self.results)} of {len(self.candidate.problems)} problems"
        return "" if self.summary is None or self.summary.scored else "not scored"

    @property
    def compares(self) -> bool:
        """Whether every problem was answered and scored."""
        return not self.state and self.summary is not None

    @property
    def group(self) -> Group:
        """The model, task and new tokens: accuracy is only compared where they are the same."""
        settings: dict[str, Any] = self.results[0].settings if self.results else {}
        return *self.candidate.subject, int(settings.get("max_new_tokens", 0))

    @property
    def measured(self) -> Summary:
        """The summary of a line that has results."""
        assert self.summary is not None
        return self.summary

    @property
    def accuracy(self) -> float:
        """Accuracy in %, of a line that has results."""
        return 100 * self.measured.accuracy

    def speed(self, of: Speed) -> float:
        """Returns a speed of a line that has results."""
        return float(getattr(self.measured, of))


def groups(lines: Sequence[Line[C]]) -> dict[Group, list[Line[C]]]:
    """Returns the lines that can be compared, by model, task and number of new tokens."""
    grouped: dict[Group, list[Line[C]]] = {}
    for line in lines:
        if line.compares:
            grouped.setdefault(line.group, []).append(line)
    return grouped


def title_of(group: Group) -> str:
    """Returns a group in words."""
    return "{}, {}, {} new tokens".format(*group)


def front(lines: Sequence[Line[C]], speed: Speed = "tokens_per_forward") -> set[int]:
    """Returns the numbers of the lines that no comparable one beats in accuracy and speed."""
    points = [(line.number, line.accuracy, line.speed(speed)) for line in lines if line.compares]
    return {
        number
        for number, accuracy, fast in points
        if not any(a >= accuracy and f >= fast and (a, f) != (accuracy, fast) for _, a, f in points)
    }
