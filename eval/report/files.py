"""Writes an ablation's report: Markdown, CSV, a page and plots."""

from __future__ import annotations

from pathlib import Path

from dllm.eval.report.ablation import Report, write_csv
from dllm.eval.report.ablation_plot import draw
from dllm.eval.report.page import page
from dllm.eval.report.tables import write_markdown


def write(folder: Path, report: Report, problems: int) -> list[Path]:
    """Returns the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.md", folder / "report.csv", folder / "report.html"]
    write_markdown(written[0], report)
    write_csv(written[1], report)
    written[2].write_text(page(report, problems), encoding="utf-8")
    if draw(folder / "report.png", report):
        written.append(folder / "report.png")
    return written
