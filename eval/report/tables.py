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
