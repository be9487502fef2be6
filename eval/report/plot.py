"""Pareto plots as PNG: accuracy over a speed, labels beside their points, the front marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from dllm.eval.ablation.lines import SPEEDS, Line, Speed, front, groups, title_of

# matplotlib takes a second to import, which commands that draw nothing should not wait for.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

PANEL, LEGEND, HEIGHT = 7.0, 2.4, 5.5  # inches
DOTS_PER_INCH = 120
SMALL = 8  # points, of labels
# Okabe and Ito's colours, told apart by colour-blind readers, without black and yellow, and three
# more; seven markers for nine colours, so that the first 63 curves differ in one or the other.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#7F3C8D", "#8C564B", "#6B8E23"),
)
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
BASELINE_STYLE = ("#222222", "o")
GREY = "#888888"
_MARGIN = 0.25  # around the baseline, of its extent, on every side
_LEAST = (0.5, 5.0)  # that margin at least: tokens per forward, points of accuracy
_CLOSER_BELOW = 0.5  # of the whole plot's area; a larger part is visible enough
_RINGS = (7, 14, 22, 32, 44, 58)  # points from a label to its point
_ANGLES = 16
_NEAR = 10  # points; a label further away gets a line to its point
_MARKER = 9  # points, a marker's width
_OUTSIDE = 1e6  # cost of leaving the axes: more than covering anything inside


@dataclass(frozen=True)
class Box:
    """A rectangle with its sides along the axes, in whatever unit."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """Returns the box of that size around its centre."""
        return cls(x - width / 2, y - height / 2, x + width / 2, y + height / 2)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def overlap(self, other: Box) -> float:
        """Returns the area that both share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def contains(self, other: Box) -> bool:
        across = self.left <= other.left and other.right <= self.right
        return across and self.bottom <= other.bottom and other.top <= self.top


def beside(
    spot: tuple[float, float],
    size: tuple[float, float],
    taken: Sequence[Box],
    frame: Box,
    unit: float = 1.0,
) -> tuple[Box, float]:
    """Returns where a box near a spot covers the least, and how far away that is in points.

    All is in pixels, of which a point has `unit`.
    """
    choices = []
    for ring in _RINGS:
        for index in range(_ANGLES):
            angle = 2 * math.pi * index / _ANGLES  # to the right first
            x = spot[0] + math.cos(angle) * (ring * unit + size[0] / 2)
            y = spot[1] + math.sin(angle) * (ring * unit + size[1] / 2)
            box = Box.around(x, y, *size)
            covered = sum(box.overlap(other) for other in taken)
            cost = covered + ring + (0 if frame.contains(box) else _OUTSIDE)
            choices.append((cost, box, ring))
    _, box, ring = min(choices, key=lambda choice: choice[0])
    return box, ring


@dataclass(frozen=True)
class Label:
    """A text for a point, in the coordinates of the data; without text only the point counts."""

    x: float
    y: float
    text: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """Accuracy over a speed, of all lines or of those in a part."""

    title: str
    lines: Sequence[Line[Any]]
    speed: Speed = "tokens_per_forward"
    part: Box | None = None  # that the panel shows
    closer: Box | None = None  # that another panel shows larger, with its labels


def draw_comparison(path: Path, title: str, lines: Sequence[Line[Any]]) -> bool:
    """Writes the plot of the finished lines; False if there are none.

    Where the baseline fills a small part, a second panel shows that part larger.
    """
    finished = [line for line in lines if line.compares]
    closer = _closer_look(finished)
    panels = [Panel(fill(title, 90), finished, closer=closer)]
    if closer is not None:
        panels.append(Panel("around the threshold (dotted frame)", finished, part=closer))
    return bool(finished) and _draw(path, [panels])


def draw_groups(path: Path, lines: Sequence[Line[Any]]) -> bool:
    """Writes a row of two plots for each model, task and number of new tokens; False if none."""
    rows = [
        [Panel(title_of(group), members, speed) for speed in SPEEDS]
        for group, members in groups(lines).items()
    ]
    return bool(rows) and _draw(path, rows)


def _draw(path: Path, rows: Sequence[Sequence[Panel]]) -> bool:
    # A second of start-up that only plots should cost.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot's, which would keep the figure until it is closed.
    size = (PANEL * len(rows[0]) + LEGEND, HEIGHT * len(rows))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    drawn = []
    all_axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    with rc_context({"text.parse_math": False}):  # a pattern in a name may have dollar signs
        for panels, row in zip(rows, all_axes, strict=True):
            drawn += list(zip(panels, row, strict=True))
            for panel, axes in zip(panels, row, strict=True):
                _draw_panel(axes, panel)
            beside = {"loc": "upper left", "bbox_to_anchor": (1.02, 1)}
            row[-1].legend(**beside, fontsize=SMALL, frameon=False)
        canvas.draw()  # labels are placed by what is measured
        for panel, axes in drawn:
            place(axes, _labels(panel), SMALL)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return True


def _styles(lines: Sequence[Line[Any]]) -> dict[str, tuple[str, str]]:
    """Returns a colour and a marker for each curve, in their order; the baseline is black."""
    baseline = next((line.curve for line in lines if line.candidate.is_baseline), None)
    chosen = {} if baseline is None else {baseline: BASELINE_STYLE}
    others = dict.fromkeys(line.curve for line in lines if line.curve != baseline)
    for index, curve in enumerate(others):
        chosen[curve] = (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
    return chosen


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """Draws points, intervals, curves and the front."""
    for curve, (colour, marker) in _styles(panel.lines).items():
        members = sorted(
            (line for line in panel.lines if line.curve == curve),
            key=lambda line: line.speed(panel.speed),
        )
        across = [line.speed(panel.speed) for line in members]
        up = [line.accuracy for line in members]
        error = [
            [line.accuracy - 100 * line.measured.accuracy_low for line in members],
            [100 * line.measured.accuracy_high - line.accuracy for line in members],
        ]
        axes.plot(across, up, color=colour, linewidth=0.8, alpha=0.7)
        axes.errorbar(across, up, yerr=error, fmt="none", ecolor=colour, alpha=0.35)
        axes.scatter(across, up, s=36, c=colour, marker=marker, label=curve, zorder=3)
    part, closer = panel.part, panel.closer
    if part is None:
        axes.set(xlim=(0, axes.get_xlim()[1]), ylim=axes.get_ylim())  # not changed by the front
    else:
        axes.set(xlim=(part.left, part.right), ylim=(part.bottom, part.top))
    if closer is not None:
        style: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": ":"}
        axes.hlines([closer.bottom, closer.top], closer.left, closer.right, **style)
        axes.vlines([closer.left, closer.right], closer.bottom, closer.top, **style)
    _draw_front(axes, panel)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel(f"{panel.speed.replace('_', ' ')}, of tokens before the first end token")
    axes.set_ylabel("accuracy in %, with its 95 % Wilson interval")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_front(axes: Axes, panel: Panel) -> None:
    """Draws the border of what some line reaches, level with a point up to its speed."""
    numbers = front(panel.lines, panel.speed)
    leading = [line for line in panel.lines if line.number in numbers]
    leaders = sorted((line.speed(panel.speed), line.accuracy) for line in leading)
    across, up = zip((0.0, leaders[0][1]), *leaders, (leaders[-1][0], 0.0), strict=True)
    (border,) = axes.plot(across, up, color=GREY, linestyle="--", linewidth=1, zorder=1)
    border.set(drawstyle="steps-pre", label="Pareto front")
    axes.scatter(across[1:-1], up[1:-1], s=120, facecolors="none", edgecolors=GREY, zorder=2)


def _labels(panel: Panel) -> list[Label]:
    """Returns the labels of a panel: a point has its text in the panel that shows it largest."""
    chosen, labels = _styles(panel.lines), []
    for line in panel.lines:
        x, y = line.speed(panel.speed), line.accuracy
        if panel.part is None or panel.part.contains(Box(x, y, x, y)):
            elsewhere = panel.closer is not None and panel.closer.contains(Box(x, y, x, y))
            mark = "" if elsewhere else line.candidate.mark
            labels.append(Label(x, y, mark, chosen[line.curve][0]))
    return labels


def _closer_look(lines: Sequence[Line[Any]]) -> Box | None:
    """Returns the surroundings of the baseline if they are a small part of the whole plot."""
    baseline = [line for line in lines if line.candidate.is_baseline]
    if not baseline:
        return None
    core, whole = _extent(baseline), _extent(lines)
    across = max(_MARGIN * (core.right - core.left), _LEAST[0])
    up = max(_MARGIN * (core.top - core.bottom), _LEAST[1])
    box = Box(core.left - across, core.bottom - up, core.right + across, core.top + up)
    return box if box.area < _CLOSER_BELOW * whole.area else None


def _extent(lines: Sequence[Line[Any]]) -> Box:
    across = [line.speed("tokens_per_forward") for line in lines]
    up = [line.accuracy for line in lines]
    return Box(min(across), min(up), max(across), max(up))


def place(axes: Axes, labels: Sequence[Label], size: float) -> list[Box]:
    """Draws each label where it covers the least, one after the other; returns their boxes.

    Boxes are in pixels. The axes have to be drawn before, since the room is measured.
    """
    unit = axes.figure.dpi / 72
    bounds = axes.get_window_extent()
    frame = Box(bounds.x0, bounds.y0, bounds.x1, bounds.y1)
    pixels = (axes.transData.transform((label.x, label.y)) for label in labels)
    spots = [(float(x), float(y)) for x, y in pixels]
    taken = [Box.around(*spot, _MARKER * unit, _MARKER * unit) for spot in spots]
    boxes = []
    for label, spot in zip(labels, spots, strict=True):
        if not label.text:
            continue
        note = _annotate(axes, label, size)
        extent = note.get_window_extent()
        box, ring = beside(spot, (extent.width, extent.height), taken, frame, unit)
        x, y = box.centre
        note.set_position(((x - spot[0]) / unit, (y - spot[1]) / unit))
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(ring > _NEAR)
        taken.append(box)
        boxes.append(box)
    return boxes


def _annotate(axes: Axes, label: Label, size: float) -> Annotation:
    from matplotlib.patheffects import withStroke  # start-up, as above

    line = {"arrowstyle": "-", "linewidth": 0.5, "color": label.colour, "shrinkA": 0, "shrinkB": 3}
    note = axes.annotate(label.text, (label.x, label.y), (0, 0), "data", "offset points", line)
    note.set(ha="center", va="center", size=size, color=label.colour, zorder=4)
    note.set_path_effects([withStroke(linewidth=2, foreground="white")])
    note.set_in_layout(False)  # or the next drawing would move what was just measured
    return note
