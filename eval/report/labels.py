"""Puts labels beside points so that they cover neither each other nor the points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm.eval.report.box import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_RINGS = (7, 14, 22, 32, 44, 58)  # points from the label to its point
_ANGLES = 16
_NEAR = 10  # points; a label further away gets a line to its point
_MARKER = 4.5  # points from a marker's centre to its edge
_OUTSIDE = 1e6  # cost of leaving the axes: more than covering anything inside


@dataclass(frozen=True)
class Label:
    """A text for a point, in the coordinates of the data; without text only the point counts."""

    x: float
    y: float
    text: str
    colour: str


def place(axes: Axes, labels: Sequence[Label], size: float) -> list[Box]:
    """Draws each label where it covers the least, one after the other; returns their boxes.

    Boxes are in pixels. The axes have to be drawn before, since the room is measured.
    """
    scale = axes.figure.dpi / 72  # pixels a point
    bounds = axes.get_window_extent()
    frame = Box(bounds.x0, bounds.y0, bounds.x1, bounds.y1)
    points = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken = [Box.around(x, y, 2 * _MARKER * scale, 2 * _MARKER * scale) for x, y in points]
    boxes = []
    for label, (x, y) in zip(labels, points, strict=True):
        if not label.text:
            continue
        note = _annotate(axes, label, size)
        extent = note.get_window_extent()
        width, height = extent.width / scale, extent.height / scale
        choices = []
        for ring, (across, up) in _offsets(width, height):
            box = Box.around(x + across * scale, y + up * scale, extent.width, extent.height)
            choices.append((_cost(box, taken, frame) + ring, ring, (across, up), box))
        _, ring, offset, box = min(choices, key=lambda choice: choice[0])
        note.set_position(offset)
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(ring > _NEAR)
        taken.append(box)
        boxes.append(box)
    return boxes


def _annotate(axes: Axes, label: Label, size: float) -> Annotation:
    from matplotlib.patheffects import withStroke

    line = {"arrowstyle": "-", "linewidth": 0.5, "color": label.colour, "shrinkA": 0, "shrinkB": 3}
    note = axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=(0, 0),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=size,
        color=label.colour,
        arrowprops=line,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=4,
    )
    note.set_in_layout(False)  # or the next drawing would move what was just measured
    return note


def _offsets(width: float, height: float) -> Iterator[tuple[int, tuple[float, float]]]:
    """Yields each ring with the offset of a label's centre, in points, to the right first."""
    for ring in _RINGS:
        for index in range(_ANGLES):
            angle = 2 * math.pi * index / _ANGLES
            across, up = math.cos(angle), math.sin(angle)
            yield ring, (across * (ring + width / 2), up * (ring + height / 2))


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    covered = sum(box.overlap(other) for other in taken)
    return covered + (0 if frame.holds(box) else _OUTSIDE)
