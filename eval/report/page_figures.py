"""The figures of a report's page as inline SVG: scatter plots, and strips, a row for each run."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.eval.ablation.lines import Line, Speed, front
from dllm.eval.report.plot import Box, beside
from dllm.state.canvas import NEVER
from dllm.trace.text import visible

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
COLOURS = 9  # classes c0 to c8 of the style sheet
NAME, STRIP, ROW = 190, 620, 26  # pixels: of names, of strips, from row to row
_DIGIT = (7.0, 12.0)  # its width and height, in pixels
_BINS = 40
_CELLS = 128  # columns of the answer are pooled to at most that many
_LEVELS = 10  # classes h0 to h9 of the style sheet


@dataclass(frozen=True)
class Axis:
    """From data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Returns the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        """Round values, five to ten of them."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span))
        step = next(power * part for part in (0.1, 0.2, 0.5, 1.0) if span / (power * part) <= 10)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scatter(lines: Sequence[Line[Any]], speed: Speed, colours: dict[str, int]) -> str:
    """Returns accuracy over a speed, with intervals and the Pareto front; at least one line."""
    most = max(line.speed(speed) for line in lines) or 1.0
    lowest = min(line.measured.accuracy_low for line in lines)
    across = Axis(0.0, 1.08 * most, LEFT, WIDTH - RIGHT)
    up = Axis(max(0.0, math.floor(10 * lowest) * 10.0), 101.0, HEIGHT - BOTTOM, TOP)
    title = f"accuracy in % over {speed.replace('_', ' ')}"
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">']
    parts += _grid(across, up, speed.replace("_", " "))
    parts.append(_front(lines, speed, across, up))
    spots = [(across.at(line.speed(speed)), up.at(line.accuracy)) for line in lines]
    taken, frame = [Box.around(*spot, 9, 9) for spot in spots], Box(LEFT, 0, WIDTH, HEIGHT - BOTTOM)
    for line, spot in zip(lines, spots, strict=True):
        size = _DIGIT[0] * len(str(line.number)), _DIGIT[1]
        taken.append(beside(spot, size, taken, frame)[0])
        x, y = taken[-1].centre[0], taken[-1].top - 3
        parts.append(_point(line, spot, up, colours[line.curve] % COLOURS))
        parts.append(f'<text class="number" x="{x:.1f}" y="{y:.1f}">{line.number}</text>')
    return "".join([*parts, "</svg>"])


def _grid(across: Axis, up: Axis, name: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in across.ticks:
        x = across.at(value)
        parts.append(f'<path class="grid" d="M{x} {TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 16}">{value:g}</text>')
    for value in up.ticks:
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text class="tick side" x="{LEFT - 6}" y="{y + 4}">{value:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}">{name}</text>')
    turned = f'transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)"'
    return [*parts, f'<text class="axis" {turned}>accuracy in %, with its 95 % interval</text>']


def _front(lines: Sequence[Line[Any]], speed: Speed, across: Axis, up: Axis) -> str:
    numbers = front(lines, speed)
    leaders = sorted((ln.speed(speed), ln.accuracy) for ln in lines if ln.number in numbers)
    path = f"M{across.at(0)} {up.at(leaders[0][1])}"
    for x, y in leaders:
        path += f"V{up.at(y)}H{across.at(x)}"
    return f'<path class="front" d="{path}V{up.at(up.low)}"/>'


def _point(line: Line[Any], spot: tuple[float, float], up: Axis, colour: int) -> str:
    summary, (x, y) = line.measured, spot
    low, high = up.at(100 * summary.accuracy_low), up.at(100 * summary.accuracy_high)
    title = visible(
        f"{line.number}: {line.name}: {summary.accuracy:.1%}, "
        f"{summary.tokens_per_forward:.2f} tokens/forward, {summary.tokens_per_second:.0f} tokens/s"
    )
    return (
        f'<g class="c{colour}"><path class="bar" d="M{x} {low}V{high}"/>'
        f'<circle cx="{x}" cy="{y}" r="4.5"><title>{html.escape(title)}</title></circle></g>'
    )


def histograms(lines: Sequence[Line[Any]]) -> str:
    """Returns the number of problems by forwards, on one scale for all runs."""
    most = max(result.forwards for line in lines for result in line.results)
    width = max(1, -(-(most + 1) // _BINS))  # forwards in a bin
    rows = []
    for line in lines:
        counts = Counter(result.forwards // width for result in line.results)
        tallest, wide = max(counts.values()), STRIP / (most // width + 1)
        bars = []
        for at, count in sorted(counts.items()):
            height = round((ROW - 6) * count / tallest, 1)
            span = f"{at * width}-{(at + 1) * width - 1}" if width > 1 else str(at)
            bars.append(
                f'<rect x="{at * wide:.1f}" y="{ROW - 2 - height}" width="{max(wide - 1, 1):.1f}" '
                f'height="{height}"><title>{span} forwards: {count} problems</title></rect>'
            )
        forwards = [result.forwards for result in line.results]
        rows.append(Strip(line, "".join(bars), f"{min(forwards)}-{max(forwards)}"))
    return _draw(rows, "forwards of a problem", (most // width + 1) * width)


def heat_map(lines: Sequence[Line[Any]]) -> str:
    """Returns the mean step that commits each column, of runs with traces; empty without any."""
    drawn = [(line, means) for line in lines if (means := mean_steps(line))]
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
    return _draw(rows, "column of the answer", slots)


def mean_steps(line: Line[Any]) -> list[float | None]:
    """Returns the mean step at which the model committed each slot; None where it never did."""
    steps: dict[int, list[int]] = {}
    for result in line.results:
        for slot, step in enumerate(result.trace["commit_step"] if result.trace else ()):
            if step != NEVER:
                steps.setdefault(slot, []).append(step)
    slots = range(max(steps, default=-1) + 1)
    return [sum(steps[slot]) / len(steps[slot]) if slot in steps else None for slot in slots]


@dataclass(frozen=True)
class Strip:
    """A row of a strip chart."""

    line: Line[Any]
    inner: str  # SVG, `STRIP` wide and `ROW` high
    span: str  # at its right end


def _draw(rows: Sequence[Strip], axis: str, most: int) -> str:
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
            f'<text class="said" x="{NAME + STRIP + 8}" y="17">{html.escape(row.span)}</text></g>'
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
    columns = f"columns {start}-{end}" if end > start else f"column {start}"
    return (
        f'<rect class="h{level}" x="{x:.1f}" y="2" width="{width + 0.3:.1f}" height="{ROW - 4}">'
        f"<title>{columns}: step {value:.1f}</title></rect>"
    )
