"""A scatter plot of runs as inline SVG: numbers name the runs, classes carry the colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.eval.report.box import Box
from dllm.eval.report.lines import Line, Speed, front
from dllm.trace.text import visible

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 44
COLOURS = 9  # classes c0 to c8 of the style sheet
_LABEL = (7.0, 12.0)  # a digit's width, a line's height, in pixels
_PLACES = [(math.cos(n * math.pi / 4), -math.sin(n * math.pi / 4)) for n in range(8)]


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


def scatter(lines: Sequence[Line], speed: Speed, colours: dict[str, int]) -> str:
    """Returns accuracy over a speed, with intervals and the Pareto front; at least one line."""
    most = max(line.speed(speed) for line in lines) or 1.0
    lowest = min(line.summary.accuracy_low for line in lines if line.summary)
    across = Axis(0.0, 1.08 * most, LEFT, WIDTH - RIGHT)
    up = Axis(max(0.0, math.floor(10 * lowest) * 10.0), 101.0, HEIGHT - BOTTOM, TOP)
    title = f"accuracy in % over {speed.replace('_', ' ')}"
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">']
    parts += _grid(across, up, speed.replace("_", " "))
    parts.append(_front(lines, speed, across, up))
    spots = [(across.at(line.speed(speed)), up.at(_accuracy(line))) for line in lines]
    labels = _labels(spots, [str(line.number) for line in lines])
    for line, spot, label in zip(lines, spots, labels, strict=True):
        parts.append(_point(line, spot, up, colours[line.method] % COLOURS))
        parts.append(f'<text class="number" x="{label[0]}" y="{label[1]}">{line.number}</text>')
    return "".join([*parts, "</svg>"])


def _accuracy(line: Line) -> float:
    assert line.summary is not None
    return 100 * line.summary.accuracy


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


def _front(lines: Sequence[Line], speed: Speed, across: Axis, up: Axis) -> str:
    numbers = front(lines, speed)
    leaders = sorted((ln.speed(speed), _accuracy(ln)) for ln in lines if ln.number in numbers)
    path = f"M{across.at(0)} {up.at(leaders[0][1])}"
    for x, y in leaders:
        path += f"V{up.at(y)}H{across.at(x)}"
    return f'<path class="front" d="{path}V{up.at(up.low)}"/>'


def _point(line: Line, spot: tuple[float, float], up: Axis, colour: int) -> str:
    summary, (x, y) = line.summary, spot
    assert summary is not None
    low, high = up.at(100 * summary.accuracy_low), up.at(100 * summary.accuracy_high)
    said = visible(
        f"{line.number}: {line.name}: {summary.accuracy:.1%}, "
        f"{summary.tokens_per_forward:.2f} tokens/forward, {summary.tokens_per_second:.0f} tokens/s"
    )
    return (
        f'<g class="c{colour}"><path class="bar" d="M{x} {low}V{high}"/>'
        f'<circle cx="{x}" cy="{y}" r="4.5"><title>{html.escape(said)}</title></circle></g>'
    )


def _labels(
    spots: Sequence[tuple[float, float]], texts: Sequence[str]
) -> list[tuple[float, float]]:
    """Returns where each text covers the least of the points and of the texts before it."""
    taken = [Box.around(x, y, 9, 9) for x, y in spots]
    found = []
    for (x, y), text in zip(spots, texts, strict=True):
        width, height = _LABEL[0] * len(text), _LABEL[1]
        choices = []
        for away in (9.0, 17.0, 26.0):
            for dx, dy in _PLACES:
                box = Box.around(x + dx * (away + width / 2), y + dy * away, width, height)
                outside = box.left < LEFT or box.right > WIDTH or box.top > HEIGHT - BOTTOM
                cost = sum(box.overlap(other) for other in taken) + away / 10 + 1e4 * outside
                choices.append((cost, box))
        _, best = min(choices, key=lambda choice: choice[0])
        taken.append(best)
        found.append((round((best.left + best.right) / 2, 1), round(best.bottom + height - 3, 1)))
    return found
