"""`dllm ablate`: the report of an ablation as values and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dllm.eval.ablation.ablation import Ablation, agreement
from dllm.eval.ablation.bench import FILE, State, Trial
from dllm.eval.ablation.lines import Line, front, groups
from dllm.eval.compare.paired import Counts
from dllm.eval.report.aup import areas
from dllm.eval.report.tables import NUMBERS, Table, accuracy, tolls, with_tolls
from dllm.eval.run.record import Start
from dllm.eval.run.results import Result, read_results
from dllm.eval.run.summary import record as numbers_of
from dllm.eval.run.summary import summarise

HEADS = ("", "run", "accuracy (95 %)", "tokens/forward", "tokens/s", "forwards", "tokens fed")
LEGEND = (
    "Tokens are those before the first end token, forwards and tokens fed those of one problem. "
    "An asterisk marks the Pareto front of accuracy and tokens per forward among the runs of one "
    "model, task and number of new tokens. Tokens per second compare only within one machine."
)
AUP_HEADS = ("model, task, new tokens", "method", "runs", "left out", "AUP")
AUP_LEGEND = (
    "AUP (arXiv 2601.07568): the area under accuracy in % over tokens per forward, accuracy "
    "weighed by how far it is below the best run of the group. Every curve begins at the slowest "
    "run of its group; runs more than 5 points below that are left out."
)
PUBLISHED_HEADS = ("run", "published", "measured", "inside its tolerance?", "source")
PUBLISHED_LEGEND = (
    "The tolerance is the 95 % interval of the published accuracy on that many problems. Only full "
    "runs of the same model, task and settings are compared."
)
BESIDE_HEADS = ("run", "accuracy", "tokens/forward", "now right", "now wrong", "texts", "note")
BESIDE_LEGEND = (
    "Now minus before, with its 95 % interval, on the problems that both runs answered. p is "
    "McNemar's exact test: how likely so uneven a number of changed problems is by chance."
)


@dataclass(frozen=True)
class Report:
    """All that a report is made from."""

    ablation: Ablation
    lines: Sequence[Line[Trial]]
    starts: Sequence[Start] = ()  # the commands that measured them
    differences: Sequence[Difference] | None = None  # None: not compared with another folder

    @property
    def environments(self) -> list[str]:
        """Versions, hardware, batch size and days of the runs."""
        days: dict[str, set[str]] = {}
        for start in self.starts:
            days.setdefault(_environment(start), set()).add(start.began[:10])
        return [f"{text}, {' and '.join(sorted(those))}" for text, those in days.items()]

    @cached_property
    def leaders(self) -> set[int]:
        """The numbers of the lines on a Pareto front of accuracy and tokens per forward."""
        return set().union(*(front(members) for members in groups(self.lines).values()))

    def agreement(self, line: Line[Trial]) -> str:
        """Returns how a line stands beside what was published."""
        row = line.candidate.row
        return agreement(row.published, line.summary, row.task.name, self.ablation.changed)

    def records(self) -> list[dict[str, Any]]:
        """Returns each line as flat values; None for what was not measured."""
        return [self._record(line) for line in self.lines]

    def _record(self, line: Line[Trial]) -> dict[str, Any]:
        row, published = line.candidate.row, line.candidate.row.published
        numbers = numbers_of(line.summary) if line.summary is not None else {}
        settings = line.results[0].settings if line.results else {}
        figures = ("accuracy", "tokens_per_second", "tokens_per_forward", "source")
        return {
            "number": line.number,
            "run": row.name,
            "method": row.method,
            "model": row.whole,
            "dtype": settings.get("dtype"),
            "task": row.task.text,
            "scheduler": numbers.get("scheduler"),
            "cache": numbers.get("cache"),
            "verifier": row.given.get("verifier"),
            **{key: settings.get(key) for key in ("max_new_tokens", "block_length", "temperature")},
            "batch_size": row.batch_size,
            **{name: numbers.get(name) for name in NUMBERS},
            **tolls(line.summary),
            "on_front": line.number in self.leaders,
            "state": line.state,
            **{f"published_{name}": getattr(published, name, None) for name in figures},
            "agreement": self.agreement(line),
        }

    def tables(self) -> list[Table]:
        """Returns the tables of the report, that of the runs first."""
        rows = [_cells(line, line.number in self.leaders) for line in self.lines]
        summaries = [line.summary for line in self.lines]
        tables = [with_tolls(Table("Runs", HEADS, rows, LEGEND), summaries)]
        rows = [self._published(line) for line in self.lines if line.candidate.row.published]
        if rows:
            tables.append(Table("Published and measured", PUBLISHED_HEADS, rows, PUBLISHED_LEGEND))
        if self.differences is not None:
            rows = [difference.cells for difference in self.differences]
            tables.append(Table("Beside the earlier run", BESIDE_HEADS, rows, BESIDE_LEGEND))
        rows = []
        for area in sorted(areas(self.lines), key=lambda one: (one.group, -(one.value or 0))):
            value = "-" if area.value is None else f"{area.value:.1f}"
            group = ", ".join(map(str, area.group))
            rows.append((group, area.method, str(area.runs), str(area.left_out), value))
        if rows:
            tables.append(Table("Accuracy under parallelism", AUP_HEADS, rows, AUP_LEGEND))
        return tables

    def _published(self, line: Line[Trial]) -> tuple[str, ...]:
        published, summary = line.candidate.row.published, line.summary
        assert published is not None
        units = (
            (published.accuracy, "%"),
            (published.tokens_per_second, "tok/s"),
            (published.tokens_per_forward, "tok/forward"),
        )
        figures = ", ".join(f"{value:g} {unit}" for value, unit in units if value is not None)
        measured = "-"
        if summary is not None and summary.scored:
            measured = f"{summary.accuracy:.1%}, {summary.tokens_per_forward:.2f} tok/forward"
        return line.name, figures or "-", measured, self.agreement(line), published.source


def _cells(line: Line[Trial], leads: bool) -> tuple[str, ...]:
    """Returns a line as text, a cell for each of `HEADS`."""
    summary, name = line.summary, line.name + (" *" if leads else "")
    if line.state:
        name = f"{name} ({line.state})"
    if summary is None:
        return (str(line.number), name, *["-"] * (len(HEADS) - 2))
    return (
        str(line.number),
        name,
        accuracy(summary),
        f"{summary.tokens_per_forward:.2f}",
        f"{summary.tokens_per_second:.0f}",
        f"{summary.forwards:.1f}",
        f"{summary.tokens_fed:.0f}",
    )


def _environment(start: Start) -> str:
    one = start.processes[0]
    changed = "+" if one.commit and one.commit.endswith("+") else ""
    commit = f" ({one.commit[:12].rstrip('+')}{changed})" if one.commit else ""
    several = f", {len(start.processes)} processes" if len(start.processes) > 1 else ""
    return (
        f"dllm {one.dllm}{commit}, torch {one.torch}, {one.device}, {one.threads} threads"
        f"{several}, {start.batch_size} rows at a time"
    )


# Beside an earlier ablation.


@dataclass(frozen=True)
class Difference:
    """A run now and before, on the problems that both answered."""

    name: str
    problems: int = 0
    accuracy: float | None = None  # points gained; None: not scored
    speed: tuple[float, float] = (0.0, 0.0)  # tokens per forward, before and now
    now_right: tuple[str, ...] = ()  # ids of problems
    now_wrong: tuple[str, ...] = ()
    texts: int = 0  # that are not the same
    note: str = ""

    @property
    def counts(self) -> Counts:
        """The problems by what changed; those that did not are all counted as `neither`."""
        gained, lost = len(self.now_right), len(self.now_wrong)
        return Counts(0, gained, lost, self.problems - gained - lost)

    @property
    def cells(self) -> tuple[str, ...]:
        """The difference as text, as the report's table has it."""
        if not self.problems:
            return (self.name, *["-"] * 5, self.note)
        before, now = self.speed
        low, high = (100 * bound for bound in self.counts.interval)
        points = "-"
        if self.accuracy is not None:
            chance = f"{low:+.0f} to {high:+.0f}, p={self.counts.exact_p:.2g}"
            points = f"{self.accuracy:+.1f} ({chance})"
        return (
            self.name,
            points,
            f"{before:.2f} -> {now:.2f}",
            _ids(self.now_right),
            _ids(self.now_wrong),
            f"{self.texts} of {self.problems} changed",
            self.note,
        )


def differences(lines: Sequence[Line[Trial]], before: Path) -> list[Difference]:
    """Returns how each run differs from the one of the same name in an earlier folder.

    Raises ValueError if the folder holds no ablation.
    """
    if not (before / FILE).is_file():
        raise ValueError(f"--compare {before}: no ablation was measured there (no {FILE})")
    entries, here = State(before).entries, {line.name: line for line in lines}
    known = {name: one for name, one in entries.items() if name in here}
    earlier = {name: read_results(before / one.file, one.run) for name, one in known.items()}
    return [
        *(_difference(line, earlier.get(line.name, {})) for line in lines),
        *(Difference(name, note="only in the earlier one") for name in entries if name not in here),
    ]


def _difference(line: Line[Trial], earlier: Mapping[str, Result]) -> Difference:
    if not earlier:
        return Difference(line.name, note="not in the earlier one")
    pairs = [(earlier[now.id], now) for now in line.results if now.id in earlier]
    if not pairs:
        return Difference(line.name, note=line.state or "no problem in common")
    if any(old.prompt != new.prompt for old, new in pairs):
        return Difference(line.name, note="other prompts: not comparable")
    old, new = summarise([one for one, _ in pairs]), summarise([one for _, one in pairs])
    scored = all(one.correct is not None for pair in pairs for one in pair)
    was, now = ({**one.settings, "other": one.settings.get("other") or {}} for one in pairs[0])
    return Difference(
        name=line.name,
        problems=len(pairs),
        accuracy=100 * (new.accuracy - old.accuracy) if scored else None,
        speed=(old.tokens_per_forward, new.tokens_per_forward),
        now_right=tuple(b.id for a, b in pairs if a.correct is False and b.correct),
        now_wrong=tuple(b.id for a, b in pairs if a.correct and b.correct is False),
        texts=sum(a.text != b.text for a, b in pairs),
        note="" if was == now else "other settings",
    )


def _ids(ids: Sequence[str], most: int = 4) -> str:
    if not ids:
        return "0"
    more = ", ..." if len(ids) > most else ""
    return f"{len(ids)}: {', '.join(ids[:most])}{more}"
