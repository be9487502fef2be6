"""Tables of text, as Markdown, and records as CSV: what every report is written with."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.eval.run.summary import Summary
from dllm.trace.text import visible

# Heads of columns that hold words; the first column may hold numbers, all others hold figures.
WORDS = {
    *("scheduler", "cache", "beside threshold", "run", "method", "note", "source"),
    *("model, task, new tokens", "inside its tolerance?"),
}
# The figures of a summary that a CSV file has.
NUMBERS = (
    *("problems", "correct", "accuracy", "accuracy_low", "accuracy_high", "tokens_per_forward"),
    *("raw_tokens_per_forward", "tokens_per_row_forward", "forwards", "row_forwards"),
    *("tokens_fed", "tokens_per_second"),
)
# What there is of answers of a form and of constraints, with the heads of their columns.
TOLLS = {
    "valid": "valid",
    "forced": "forced",
    "nats_lost": "nats lost",
    "constraint_ms": "constraint ms",
}
TOLL_LEGEND = (
    "Valid: answers of the form that was asked for. Forced: tokens of an answer that its "
    "constraint left no choice of. Nats lost: by how much its tokens were less probable than the "
    "model's own, when they were written. Constraint ms: of one step of the batch."
)


@dataclass(frozen=True)
class Table:
    """Cells under heads, with a title above and a legend below."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str

    def markdown(self) -> str:
        """Returns the heads and rows as Markdown."""
        rule = ["---" if head in WORDS or not head else "---:" for head in self.heads]
        rows = [[_escape(cell) for cell in row] for row in (self.heads, *self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def accuracy(summary: Summary) -> str:
    """Returns the accuracy with its interval as a cell has it; "-" if nothing was scored."""
    low, high = 100 * summary.accuracy_low, 100 * summary.accuracy_high
    return f"{summary.accuracy:.1%} ({low:.0f}-{high:.0f})" if summary.scored else "-"


def notes_of(summary: Summary) -> list[str]:
    """Returns what stands below a table: further scores, padding, and what a constraint cost."""
    shares = {**summary.scores, **{f"pass@{k}": part for k, part in summary.pass_at.items()}}
    tolls = {"tokens forced": summary.forced, "nats lost": summary.nats_lost}
    spent = summary.constraint_ms
    costs = [f"{value:.2f} {name}" for name, value in tolls.items() if value is not None]
    costs += [] if spent is None else [f"{spent:.2f} ms of a step for the constraint"]
    lines = [f"{name} {part:.1%}" for name, part in shares.items()]
    fed = [] if summary.padding is None else [f"{summary.padding:.1%} of what was fed was padding"]
    return [", ".join(listed) for listed in (lines, fed, costs) if listed]


def tolls(summary: Summary | None) -> dict[str, float | None]:
    """Returns the share of valid answers, and what a constraint cost; None where there is none."""
    if summary is None:
        return dict.fromkeys(TOLLS)
    costs = {name: getattr(summary, name) for name in TOLLS if name != "valid"}
    return {"valid": summary.scores.get("valid"), **costs}


def with_tolls(table: Table, summaries: Sequence[Summary | None]) -> Table:
    """Returns a table with validity and what constraints cost last, as far as any run has them.

    `summaries` are those of its rows.
    """
    found = [tolls(summary) for summary in summaries]
    names = [name for name in TOLLS if any(one[name] is not None for one in found)]
    if not names:
        return table
    more = [[_figure(name, one[name]) for name in names] for one in found]
    rows = [[*row, *cells] for row, cells in zip(table.rows, more, strict=True)]
    heads = [*table.heads, *(TOLLS[name] for name in names)]
    return Table(table.title, heads, rows, f"{table.legend} {TOLL_LEGEND}")


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name == "valid" else f"{value:.2f}"


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records of the same keys, of which there is at least one."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_markdown(path: Path, parts: Sequence[str]) -> None:
    """Writes the parts that are not empty, a line between them."""
    path.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def plain(text: str) -> str:
    """Returns text in one line in which Markdown finds no tag."""
    return " ".join(visible(text).split()).replace("<", "&lt;")


def _escape(cell: str) -> str:
    for character in "\\`*[]|":
        cell = cell.replace(character, f"\\{character}")
    return plain(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", cell))
