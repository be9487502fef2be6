"""Strips of a report, a row for each run: how many forwards, and in which order columns fill."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from dllm.eval.report.lines import Line
from dllm.state.canvas import NEVER
from dllm.trace.text import visible

NAME, STRIP, ROW = 190, 620, 26  # pixels: of names, of strips, from row to row
_BINS = 40
_CELLS = 128  # columns of the answer are pooled to at most that many
_LEVELS = 10  # classes h0 to h9 of the style sheet


def histograms(lines: Sequence[Line]) -> str:
    """Returns the number of problems by forwards, on one scale for all runs."""
    most = max(result.forwards for line in lines for result in line.outcome.results)
    width = max(1, -(-(most + 1) // _BINS))  # forwards in a bin
    rows = []
    for line in lines:
        counts = Counter(result.forwards // width for result in line.outcome.results)
        tallest, wide = max(counts.values()), STRIP / (most // width + 1)
        bars = []
        for at, count in sorted(counts.items()):
            height = round((ROW - 6) * count / tallest, 1)
            span = f"{at * width}-{(at + 1) * width - 1}" if width > 1 else str(at)
            bars.append(
                f'<rect x="{at * wide:.1f}" y="{ROW - 2 - height}" width="{max(wide - 1, 1):.1f}" '
                f'height="{height}"><title>{span} forwards: {count} problems</title></rect>'
            )
        forwards = [result.forwards for result in line.outcome.results]
        rows.append(Strip(line, "".join(bars), f"{min(forwards)}-{max(forwards)}"))
    return draw(rows, "forwards of a problem", (most // width + 1) * width)


def heat_map(lines: Sequence[Line]) -> str:
    """Returns the mean step that commits each column, of runs with traces; empty without any."""
    found = [(line, mean_steps(line)) for line in lines]
    drawn = [(line, means) for line, means in found if means]
    if not drawn:
        return ""
    slots = max(len(means) for _, means in drawn)
    pool = -(-slots // _CELLS)
    rows = []
    for line, means in drawn:
        cells, last = [], max(value for value in means if value is not None)
        for start in range(0, len(means), pool):
            known = [value for value in means[start : start + pool] if value is not None]
            if known:
                cells.append(_cell(start, pool, slots, (sum(known) / len(known), last)))
        rows.append(Strip(line, "".join(cells), f"to {last:.1f}"))
    return draw(rows, "column of the answer", slots)


def mean_steps(line: Line) -> list[float | None]:
    """Returns the mean step at which the model committed each slot; None where it never did."""
    totals: list[list[int]] = []
    for result in line.outcome.results:
        steps = [] if result.trace is None else result.trace["commit_step"]
        for slot, step in enumerate(steps):
            if slot == len(totals):
                totals.append([])
            if step != NEVER:
                totals[slot].append(step)
    means = [float(Fraction(sum(steps), len(steps))) if steps else None for steps in totals]
    while means and means[-1] is None:
        means.pop()
    return means


@dataclass(frozen=True)
class Strip:
    """A row of a strip chart."""

    line: Line
    inner: str  # SVG, `STRIP` wide and `ROW` high
    said: str  # at its right end


def draw(rows: Sequence[Strip], axis: str, most: int) -> str:
    """Returns rows under each other, named, over a common axis from 0 to `most`."""
    width, height = NAME + STRIP + 80, ROW * len(rows) + 34
    parts = [f'<svg class="strips" viewBox="0 0 {width} {height}" role="img" aria-label="{axis}">']
    for index, row in enumerate(rows):
        name = f"{row.line.number}  {row.line.name}"
        cut = name if len(name) <= 29 else f"{name[:28]}…"
        parts.append(
            f'<g transform="translate(0 {ROW * index})"><title>{html.escape(visible(name))}</title>'
            f'<text class="name" x="{NAME - 8}" y="17">{html.escape(visible(cut))}</text>'
            f'<g transform="translate({NAME} 0)">{row.inner}</g>'
            f'<text class="said" x="{NAME + STRIP + 8}" y="17">{html.escape(row.said)}</text></g>'
        )
    bottom = ROW * len(rows)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = NAME + share * STRIP
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 14}">{round(share * most)}</text>')
    middle = NAME + STRIP / 2
    parts.append(f'<text class="axis" x="{middle}" y="{bottom + 30}">{axis}</text></svg>')
    return "".join(parts)


def _cell(start: int, pool: int, slots: int, mean: tuple[float, float]) -> str:
    value, last = mean
    level = min(int(_LEVELS * value / last), _LEVELS - 1) if last else 0
    x, width = STRIP * start / slots, STRIP * pool / slots
    end = min(start + pool, slots) - 1
    place = f"columns {start}-{end}" if end > start else f"column {start}"
    return (
        f'<rect class="h{level}" x="{x:.1f}" y="2" width="{width + 0.3:.1f}" height="{ROW - 4}">'
        f"<title>{place}: step {value:.1f}</title></rect>"
    )
