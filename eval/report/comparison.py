"""The comparison's table as values, CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dllm.decoding.speculation import verifiers
from dllm.eval.report.standings import Standing
from dllm.eval.run.describe import label_of, short
from dllm.eval.run.run import Run
from dllm.eval.run.summary import Summary

NUMBERS = (
    *("problems", "correct", "accuracy", "accuracy_low", "accuracy_high", "tokens_per_forward"),
    *("raw_tokens_per_forward", "tokens_per_row_forward", "forwards", "row_forwards"),
    *("tokens_fed", "tokens_per_second"),
)
HEADS = (
    *("scheduler", "accuracy (95 %)", "tokens/forward", "forwards", "row forwards"),
    "beside threshold",
)
LEGEND = (
    "Worse: a setting of `threshold` has at least that accuracy and at least those tokens per "
    "forward; worse per row: the same where every variant of a row counts as a forward. Both "
    "compare the measured values, whose intervals are beside them. Forwards are those of one "
    "problem, row forwards with every variant; an asterisk marks the Pareto front."
)


def heading(run: Run, num_problems: int) -> str:
    """Returns what was measured: task, problems, model, lengths, the verifier if there is one."""
    verifier = run.describe().get("verifier")
    verified = f", verifier {short(verifier, verifiers.registry)}" if verifier else ""
    return (
        f"{run.task.name}: {num_problems} held-out problems, {run.model.name}, "
        f"{run.settings.max_new_tokens} new tokens, blocks of {run.block_length}, "
        f"batch {run.num_rows}{verified}"
    )


def label(run: Run) -> str:
    """Returns the scheduler and cache of a run, and the verifier if it has one."""
    return label_of(run.describe())


def record(standing: Standing) -> dict[str, Any]:
    """Returns a line of the comparison as JSON-ready values; None for what was not measured."""
    contender, summary = standing.contender, standing.summary
    numbers = asdict(summary) if summary is not None else {}
    return {
        "label": contender.curve,
        "scheduler": contender.text,
        "cache": contender.cache,
        **{name: numbers.get(name) for name in NUMBERS},
        "verdict": str(standing.verdict),
        "on_front": standing.on_front,
    }


def cells(standing: Standing) -> list[str]:
    """Returns a line of the comparison as text, a cell for each of `HEADS`."""
    name = standing.contender.text + (" *" if standing.on_front else "")
    return [name, *_figures(standing.summary), str(standing.verdict)]


def write_csv(path: Path, standings: Sequence[Standing]) -> None:
    """Writes all that is known of each contender."""
    records = [record(standing) for standing in standings]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_markdown(path: Path, title: str, standings: Sequence[Standing]) -> None:
    """Writes the table as it is printed."""
    rule = ["---", *["---:"] * (len(HEADS) - 2), "---"]
    rows = [list(HEADS), rule, *(cells(standing) for standing in standings)]
    table = ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    text = "\n".join([f"{title}.", "", *table, "", LEGEND, ""])
    path.write_text(text, encoding="utf-8")


def _figures(summary: Summary | None) -> list[str]:
    if summary is None:
        return ["-"] * (len(HEADS) - 2)
    low, high = 100 * summary.accuracy_low, 100 * summary.accuracy_high
    return [
        f"{summary.accuracy:.1%} ({low:.0f}-{high:.0f})",
        f"{summary.tokens_per_forward:.2f}",
        f"{summary.forwards:.1f}",
        f"{summary.row_forwards:.1f}",
    ]


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")
