"""The tables of an ablation's report as text, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dllm.eval.report.ablation import Report
from dllm.eval.report.differences import Difference
from dllm.eval.report.lines import Line, areas
from dllm.trace.text import visible

Table = Sequence[Sequence[str]]

HEADS = ("", "run", "accuracy (95 %)", "tokens/forward", "tokens/s", "forwards", "tokens fed")
DIFFERENCE_HEADS = (
    *("run", "accuracy", "tokens/forward", "now right", "now wrong", "texts", "note"),
)
AUP_HEADS = ("model, task, new tokens", "method", "runs", "left out", "AUP")
PUBLISHED_HEADS = ("run", "published", "measured", "inside its tolerance?", "source")
LEGEND = (
    "Tokens are those before the first end token, forwards and tokens fed those of one problem. "
    "An asterisk marks the Pareto front of accuracy and tokens per forward among the runs of one "
    "model, task and number of new tokens. Tokens per second compare only within one machine."
)
AUP_LEGEND = (
    "AUP (arXiv 2601.07568): the area under accuracy in % over tokens per forward, accuracy "
    "weighed by how far it is below the best run of the group. Every curve begins at the slowest "
    "run of its group; runs more than 5 points below that are left out."
)
TOLERANCE = (
    "The tolerance is the 95 % interval of the published accuracy on that many problems. Only full "
    "runs of the same model, task and settings are compared."
)


def write_markdown(path: Path, report: Report) -> None:
    """Writes the tables as they are printed, and what they mean."""
    parts = [f"# {report.ablation.name}: {_plain(report.ablation.about)}"]
    parts += [f"- {_plain(note)}" for note in report.ablation.notes]
    for heading, table, legend in tables(report):
        parts += [f"## {heading}", _markdown(table), legend]
    parts += [f"Measured with {one}." for one in report.environments]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def tables(report: Report) -> list[tuple[str, Table, str]]:
    """Returns each table of the report with its heading and its legend; heads come first."""
    leaders = report.leaders
    found: list[tuple[str, Table, str]] = [
        ("Runs", [HEADS, *(cells(line, leaders) for line in report.lines)], LEGEND)
    ]
    if any(line.outcome.trial.row.published for line in report.lines):
        rows = [_published(line) for line in report.lines if line.outcome.trial.row.published]
        found.append(("Published and measured", [PUBLISHED_HEADS, *rows], TOLERANCE))
    if report.differences is not None:
        table = [DIFFERENCE_HEADS, *(difference.cells for difference in report.differences)]
        found.append(("Beside the earlier run", table, Difference.LEGEND))
    ranked = sorted(areas(report.lines), key=lambda area: (area.group, -(area.value or 0)))
    if ranked:
        areas_of = [
            (
                ", ".join(map(str, area.group)),
                area.method,
                str(area.runs),
                str(area.left_out),
                "-" if area.value is None else f"{area.value:.1f}",
            )
            for area in ranked
        ]
        found.append(("Accuracy under parallelism", [AUP_HEADS, *areas_of], AUP_LEGEND))
    return found


def cells(line: Line, leaders: set[int]) -> tuple[str, ...]:
    """Returns a line as text, a cell for each of `HEADS`."""
    summary, name = line.summary, line.name + (" *" if line.number in leaders else "")
    if line.state:
        name = f"{name} ({line.state})"
    if summary is None:
        return (str(line.number), name, *["-"] * (len(HEADS) - 2))
    low, high = 100 * summary.accuracy_low, 100 * summary.accuracy_high
    return (
        str(line.number),
        name,
        f"{summary.accuracy:.1%} ({low:.0f}-{high:.0f})" if summary.scored else "-",
        f"{summary.tokens_per_forward:.2f}",
        f"{summary.tokens_per_second:.0f}",
        f"{summary.forwards:.1f}",
        f"{summary.tokens_fed:.0f}",
    )


def _published(line: Line) -> tuple[str, ...]:
    published, summary = line.outcome.trial.row.published, line.summary
    assert published is not None
    speeds: Mapping[str, float | None] = {
        "tok/s": published.tokens_per_second,
        "tok/forward": published.tokens_per_forward,
    }
    figures = [] if published.accuracy is None else [f"{published.accuracy:g} %"]
    figures += [f"{value:g} {unit}" for unit, value in speeds.items() if value is not None]
    measured = "-"
    if summary is not None and summary.scored:
        measured = f"{summary.accuracy:.1%}, {summary.tokens_per_forward:.2f} tok/forward"
    return (
        line.name,
        ", ".join(figures) or "-",
        measured,
        line.agreement.text,
        published.source,
    )


def _markdown(table: Table) -> str:
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows)


def _plain(text: str) -> str:
    """Returns text in one line in which Markdown finds no tag."""
    return " ".join(visible(text).split()).replace("<", "&lt;")


def _escape(cell: str) -> str:
    for character in "\\`*_[]|":
        cell = cell.replace(character, f"\\{character}")
    return _plain(cell)
