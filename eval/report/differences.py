"""An ablation beside an earlier one: what each run gained and lost, problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dllm.eval.ablation.state import FILE, State
from dllm.eval.compare.paired import Counts
from dllm.eval.report.lines import Line
from dllm.eval.run.results import Result, read_results
from dllm.eval.run.summary import summarise


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

    LEGEND: ClassVar[str] = (
        "Now minus before, with its 95 % interval, on the problems that both runs answered. p is "
        "McNemar's exact test: how likely so uneven a number of changed problems is by chance."
    )

    @property
    def counts(self) -> Counts:
        """The problems by what changed; those that did not are all counted as `neither`."""
        gained, lost = len(self.now_right), len(self.now_wrong)
        return Counts(0, gained, lost, self.problems - gained - lost)

    @property
    def _gain(self) -> str:
        low, high = (100 * bound for bound in self.counts.interval)
        p = self.counts.exact_p
        return f"{self.accuracy:+.1f} ({low:+.0f} to {high:+.0f}, p={p:.2g})"

    @property
    def cells(self) -> tuple[str, ...]:
        """The difference as text, as the report's table has it."""
        if not self.problems:
            return (self.name, *["-"] * 5, self.note)
        before, now = self.speed
        points = "-" if self.accuracy is None else self._gain
        return (
            self.name,
            points,
            f"{before:.2f} -> {now:.2f}",
            _ids(self.now_right),
            _ids(self.now_wrong),
            f"{self.texts} of {self.problems} changed",
            self.note,
        )


def differences(lines: Sequence[Line], before: Path) -> list[Difference]:
    """Returns how each run differs from the one of the same name in an earlier folder.

    Raises ValueError if the folder holds no ablation.
    """
    if not (before / FILE).is_file():
        raise ValueError(f"--compare {before}: no ablation was measured there (no {FILE})")
    state = State(before)
    found = [_difference(line, _earlier(state, before, line.name)) for line in lines]
    here = {line.name for line in lines}
    gone = [name for name in state.names if name not in here]
    return [*found, *(Difference(name, note="only in the earlier one") for name in gone)]


def _earlier(state: State, folder: Path, name: str) -> Mapping[str, Result]:
    entry = state.entry(name)
    return {} if entry is None else read_results(folder / entry.file, entry.run)


def _difference(line: Line, earlier: Mapping[str, Result]) -> Difference:
    if not earlier:
        return Difference(line.name, note="not in the earlier one")
    pairs = [(earlier[now.id], now) for now in line.outcome.results if now.id in earlier]
    if not pairs:
        return Difference(line.name, note=line.state or "no problem in common")
    if any(old.prompt != new.prompt for old, new in pairs):
        return Difference(line.name, note="other prompts: not comparable")
    old, new = summarise([one for one, _ in pairs]), summarise([one for _, one in pairs])
    scored = all(one.correct is not None for pair in pairs for one in pair)
    same = _settings(pairs[0][0]) == _settings(pairs[0][1])
    return Difference(
        name=line.name,
        problems=len(pairs),
        accuracy=100 * (new.accuracy - old.accuracy) if scored else None,
        speed=(old.tokens_per_forward, new.tokens_per_forward),
        now_right=tuple(b.id for a, b in pairs if a.correct is False and b.correct),
        now_wrong=tuple(b.id for a, b in pairs if a.correct and b.correct is False),
        texts=sum(a.text != b.text for a, b in pairs),
        note="" if same else "other settings",
    )


def _settings(result: Result) -> Mapping[str, object]:
    return {**result.settings, "other": dict(result.settings.get("other") or {})}


def _ids(ids: Sequence[str], most: int = 4) -> str:
    if not ids:
        return "0"
    more = ", ..." if len(ids) > most else ""
    return f"{len(ids)}: {', '.join(ids[:most])}{more}"
