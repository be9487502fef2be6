"""Accuracy over tokens per forward of a few schedulers, as a picture for the README.

    dllm eval --task arithmetic --schedulers all --limit 500 --output runs
    python -m benchmarks.front runs/arithmetic.md --output docs/figures/front.svg

Reads the table that `dllm eval --schedulers` writes, or a page that has it, and draws at most ten
methods. The SVG fetches nothing and follows the reader's light or dark mode.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

SHOWN = {  # method -> the settings along its curve
    "threshold": [f"threshold:{value}" for value in (0.95, 0.9, 0.8, 0.7)],
    "fixed_quota": ["fixed_quota", "fixed_quota:steps=32"],
    "dream": ["dream"],
    "klass": ["klass"],
    "certainty_density": ["certainty_density:0.35"],
    "slowfast": ["slowfast@paper"],
    "wino": ["wino:0.95"],
    "credit": ["credit:0.99"],
    "multi_block": ["multi_block"],
    "localleap": ["localleap"],
}
WIDTH, HEIGHT = 760, 380  # pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44
RIGHTMOST, LOWEST = 7.8, 75.0  # tokens a forward, % of the problems
LETTER, LINE = 7.4, 15  # pixels of a label
STYLE = """
svg { --ink: #1f2328; --faint: #656d76; --line: #d8dee4; --front: #0969da; --paper: #fff; }
@media (prefers-color-scheme: dark) {
 svg { --ink: #e6edf3; --faint: #8d96a0; --line: #30363d; --front: #58a6ff; --paper: #0d1117; }
}
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink); }
text { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.axis { fill: var(--faint); } .grid { stroke: var(--line); }
.front { fill: none; stroke: var(--front); stroke-width: 2; stroke-opacity: .45; }
.whisker { stroke: var(--faint); stroke-opacity: .5; }
.dot { fill: var(--paper); stroke: var(--faint); stroke-width: 2; }
.leads { fill: var(--front); stroke: var(--front); }
"""


@dataclass(frozen=True)
class Point:
    """What a setting gave on the problems of a run."""

    label: str
    speed: float  # tokens per forward
    accuracy: float  # %
    low: float  # of its interval, %
    high: float

    @property
    def x(self) -> float:
        """Pixels from the left."""
        return LEFT + self.speed / RIGHTMOST * (WIDTH - LEFT - RIGHT)

    @property
    def y(self) -> float:
        """Pixels from the top."""
        return height_of(self.accuracy)


def height_of(accuracy: float) -> float:
    """Returns the pixels from the top at which an accuracy in % stands."""
    return TOP + (100 - accuracy) / (100 - LOWEST) * (HEIGHT - TOP - BOTTOM)


def read(page: str) -> list[Point]:
    """Returns the points to show; raises ValueError for a setting that the table does not have."""
    row = r"^\| (\S+)(?: \\\*)? \| ([\d.]+)% \((\d+)-(\d+)\) \| ([\d.]+) \|"
    rows = {name: figures for name, *figures in re.findall(row, page, re.MULTILINE)}
    points = []
    for method, settings in SHOWN.items():
        for setting in settings:
            if setting not in rows:
                raise ValueError(f"the table has no row {setting!r}; it has {', '.join(rows)}")
            accuracy, low, high, speed = map(float, rows[setting])
            value = setting.removeprefix(method).lstrip(":@").rpartition("=")[2]
            points.append(Point(f"{method} {value}".strip(), speed, accuracy, low, high))
    return points


def front_of(points: Iterable[Point]) -> list[Point]:
    """Returns the points that no other one beats, slowest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.accuracy)):
        if not found or point.accuracy > found[-1].accuracy:
            found.append(point)
    return found[::-1]


def draw(points: Sequence[Point], about: str) -> str:
    """Returns the SVG."""
    front = front_of(points)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Accuracy over tokens per forward</title>",
        f"<desc>{escape(about)}</desc>",
        f"<style>{STYLE}</style>",
        *_axes(),
        f'<path class="front" d="{_steps(front)}"/>',
        *(_dot(point, point in front) for point in points),
        *_labels(points),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes() -> Iterator[str]:
    foot = HEIGHT - BOTTOM
    for accuracy in range(int(LOWEST), 101, 5):
        y = height_of(accuracy)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        at = f'x="{LEFT - 8}" y="{y + 4:.1f}"'
        yield f'<text class="axis" {at} text-anchor="end">{accuracy}%</text>'
    for speed in range(int(RIGHTMOST) + 1):
        x = Point("", speed, 0, 0, 0).x
        yield f'<text class="axis" x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{speed}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    text = "tokens per forward; accuracy upwards, with its 95% interval"
    yield f'<text class="axis" x="{middle:g}" y="{HEIGHT - 8}" text-anchor="middle">{text}</text>'


def _steps(front: Sequence[Point]) -> str:
    """Returns the border of what some setting reaches: level up to each point's speed."""
    path = f"M{LEFT} {front[0].y:.1f}"
    for point, following in zip(front, [*front[1:], None], strict=True):
        below = HEIGHT - BOTTOM if following is None else following.y
        path += f"H{point.x:.1f}V{below:.1f}"
    return path


def _dot(point: Point, leads: bool) -> str:
    high, low = height_of(point.high), height_of(max(point.low, LOWEST))
    kind = "dot leads" if leads else "dot"
    return (
        f'<path class="whisker" d="M{point.x:.1f} {high:.1f}V{low:.1f}"/>'
        f'<circle class="{kind}" cx="{point.x:.1f}" cy="{point.y:.1f}" r="4.5"/>'
    )


def _labels(points: Sequence[Point]) -> Iterator[str]:
    """Yields a label beside each point, where it covers neither points nor other labels."""
    taken = [(point.x - 7, point.y - 7, point.x + 7, point.y + 7) for point in points]
    for point in points:
        size = LETTER * len(point.label)
        left = -9 - size
        sides = [(8, -6), (9, 4), (left, 4), (left, 14), (9, 16)]
        sides += [(-size / 2, 24), (left, -8), (8, -20), (left, -20), (8, 30), (left, 30)]
        boxes = [
            (point.x + dx, point.y + dy - LINE + 4, point.x + dx + size, point.y + dy + 3)
            for dx, dy in sides
        ]
        free = [box for box in boxes if not any(_meet(box, other) for other in taken)]
        box = (free or boxes)[0]
        taken.append(box)
        yield f'<text x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(point.label)}</text>'


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    apart = one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    return not apart or one[0] < LEFT or one[2] > WIDTH


def main() -> None:
    """Reads a table and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, nargs="?", default=Path("docs/notes/comparison.md"))
    parser.add_argument("--output", type=Path, default=Path("docs/figures/front.svg"))
    options = parser.parse_args()
    points = read(options.table.read_text(encoding="utf-8"))
    options.output.write_text(draw(points, f"figures of {options.table.name}"), encoding="utf-8")
    print(options.output)


if __name__ == "__main__":
    main()
