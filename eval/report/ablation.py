"""What an ablation's report is made from, and its figures as CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.eval.ablation.ablation import Ablation
from dllm.eval.report.comparison import NUMBERS
from dllm.eval.report.differences import Difference
from dllm.eval.report.lines import Line, front, groups
from dllm.eval.run.record import Start
from dllm.eval.run.summary import record as numbers_of


@dataclass(frozen=True)
class Report:
    """All that a report is made from."""

    ablation: Ablation
    lines: Sequence[Line]
    differences: Sequence[Difference] | None = None  # None: not compared with another folder

    @property
    def environments(self) -> list[str]:
        """Versions, hardware, batch size and days of the runs."""
        said: dict[str, set[str]] = {}
        for line in self.lines:
            for start in line.outcome.starts:
                said.setdefault(_environment(start), set()).add(start.began[:10])
        return [f"{text}, {' and '.join(sorted(days))}" for text, days in said.items()]

    @property
    def leaders(self) -> set[int]:
        """The numbers of the lines on a Pareto front of accuracy and tokens per forward."""
        found: set[int] = set()
        for members in groups(self.lines).values():
            found |= front(members, "tokens_per_forward")
        return found


def record(line: Line, *, leads: bool) -> dict[str, Any]:
    """Returns a line as flat values; None for what was not measured."""
    row, summary = line.outcome.trial.row, line.summary
    numbers = numbers_of(summary) if summary is not None else {}
    settings = line.outcome.results[0].settings if line.outcome.results else {}
    published = row.published
    return {
        "number": line.number,
        "run": row.name,
        "method": row.method,
        "model": row.model,
        "dtype": settings.get("dtype"),
        "task": row.task.text,
        "scheduler": numbers.get("scheduler"),
        "cache": numbers.get("cache"),
        "verifier": row.given.get("verifier"),
        **{key: settings.get(key) for key in ("max_new_tokens", "block_length", "temperature")},
        "batch_size": row.batch_size,
        **{name: numbers.get(name) for name in NUMBERS},
        "on_front": leads,
        "state": line.state,
        "published_accuracy": published.accuracy if published else None,
        "published_tokens_per_second": published.tokens_per_second if published else None,
        "published_tokens_per_forward": published.tokens_per_forward if published else None,
        "published_source": published.source if published else None,
        "agreement": line.agreement.text,
    }


def write_csv(path: Path, report: Report) -> None:
    """Writes all that is known of each run."""
    leaders = report.leaders
    records = [record(line, leads=line.number in leaders) for line in report.lines]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _environment(start: Start) -> str:
    one = start.processes[0]
    changed = "+" if one.commit and one.commit.endswith("+") else ""
    commit = f" ({one.commit[:12].rstrip('+')}{changed})" if one.commit else ""
    several = f", {len(start.processes)} processes" if len(start.processes) > 1 else ""
    return (
        f"dllm {one.dllm}{commit}, torch {one.torch}, {one.device}, {one.threads} threads"
        f"{several}, {start.batch_size} rows at a time"
    )
