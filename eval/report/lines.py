"""What an ablation's report says of each run, and of each method over its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from dllm.eval.ablation.ablation import Ablation
from dllm.eval.ablation.bench import Outcome
from dllm.eval.ablation.published import Agreement, agreement
from dllm.eval.report.aup import TOLERANCE, Measured, aup
from dllm.eval.run.summary import Summary, summarise

Speed = Literal["tokens_per_forward", "tokens_per_second"]


@dataclass(frozen=True)
class Line:
    """A run in the report."""

    number: int  # from 1, in the order of the configuration
    outcome: Outcome
    summary: Summary | None  # None: nothing was measured
    agreement: Agreement

    @property
    def name(self) -> str:
        """What the configuration calls the run."""
        return self.outcome.trial.row.name

    @property
    def method(self) -> str:
        """The curve that the run is on."""
        return self.outcome.trial.row.method

    @property
    def state(self) -> str:
        """Why figures are missing or cannot be compared; empty for a finished run."""
        if self.outcome.refusal is not None:
            return f"refused: {self.outcome.refusal}"
        if not self.outcome.complete:
            done, wanted = len(self.outcome.results), len(self.outcome.trial.problems)
            return f"incomplete: {done} of {wanted} problems"
        return "" if self.summary is None or self.summary.scored else "not scored"

    @property
    def compares(self) -> bool:
        """Whether the run answered every problem and was scored."""
        return not self.state and self.summary is not None

    @cached_property
    def group(self) -> tuple[str, str, int]:
        """The model, task and slots: accuracy is only compared where they are the same."""
        row = self.outcome.trial.row
        settings: dict[str, Any] = self.outcome.results[0].settings if self.outcome.results else {}
        return row.model, row.task.text, int(settings.get("max_new_tokens", 0))

    def speed(self, of: Speed) -> float:
        """Returns a figure of the summary."""
        assert self.summary is not None
        return float(getattr(self.summary, of))


@dataclass(frozen=True)
class Area:
    """The AUP of a method in a group of runs."""

    group: tuple[str, str, int]
    method: str
    runs: int
    left_out: int  # of the runs: more than 5 points below the slowest run of the group
    value: float | None  # None: no run of the group was ever right


def lines_of(ablation: Ablation, outcomes: Sequence[Outcome]) -> list[Line]:
    """Returns a line for each outcome, in their order."""
    found = []
    for number, outcome in enumerate(outcomes, start=1):
        summary = summarise(outcome.results) if outcome.results else None
        row = outcome.trial.row
        said = agreement(row.published, summary, row.task.name, ablation.changed)
        found.append(Line(number, outcome, summary, said))
    return found


def groups(lines: Sequence[Line]) -> dict[tuple[str, str, int], list[Line]]:
    """Returns the lines that can be compared, by model, task and slots."""
    found: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        if line.compares:
            found.setdefault(line.group, []).append(line)
    return found


def front(lines: Sequence[Line], speed: Speed) -> set[int]:
    """Returns the numbers of the lines that no other one beats in accuracy and speed."""
    points = [(line.number, _accuracy(line), line.speed(speed)) for line in lines]
    return {
        number
        for number, accuracy, fast in points
        if not any(a >= accuracy and f >= fast and (a, f) != (accuracy, fast) for _, a, f in points)
    }


def areas(lines: Sequence[Line]) -> list[Area]:
    """Returns the AUP of each method, by group.

    Each curve begins at the slowest run of its group: what comes before a method's first run would
    otherwise count unweighted, and one fast run would beat a whole curve. Runs that lost too much
    accuracy are left out, so that a method's other runs still count. The best accuracy is that of
    the group's best run.
    """
    found = []
    for group, members in groups(lines).items():
        best = max(map(_accuracy, members))
        slowest = min(members, key=lambda line: (line.speed("tokens_per_forward"), -line.number))
        least = _accuracy(slowest) - TOLERANCE
        for method in dict.fromkeys(line.method for line in members):
            runs = [line for line in members if line.method == method]
            kept = [line for line in runs if _accuracy(line) >= least]
            value = _area([slowest, *kept], best) if best else None
            found.append(Area(group, method, len(runs), len(runs) - len(kept), value))
    return found


def _area(members: Sequence[Line], best: float) -> float:
    fastest: dict[float, float] = {}  # of runs of one speed the better one counts
    for line in members:
        speed = line.speed("tokens_per_forward")
        fastest[speed] = max(fastest.get(speed, 0.0), _accuracy(line))
    return aup([Measured(speed, accuracy) for speed, accuracy in fastest.items()], best)


def _accuracy(line: Line) -> float:
    assert line.summary is not None
    return 100 * line.summary.accuracy
