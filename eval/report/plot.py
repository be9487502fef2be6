"""The Pareto plot of a comparison: accuracy over tokens per forward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.eval.report.box import Box
from dllm.eval.report.labels import Label, place
from dllm.eval.report.points import Point, closer_look, points_of
from dllm.eval.report.standings import Standing

# matplotlib takes a second to import, which commands that draw nothing should not wait for.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, LEGEND, HEIGHT = 7.0, 1.8, 6.5  # inches
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


def draw(path: Path, title: str, standings: Sequence[Standing]) -> bool:
    """Writes the plot of the finished contenders as PNG; False if there are none.

    Where the baseline fills a small part, a second panel shows that part larger.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = points_of(standings)
    if not points:
        return False
    closer = closer_look(points)
    parts = [None] if closer is None else [None, closer]
    # Not pyplot's, which would keep the figure until it is closed.
    size = (PANEL * len(parts) + LEGEND, HEIGHT)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, part in zip(panels, parts, strict=True):
        _draw_panel(axes, points, part)
    if closer is not None:
        _outline(panels[0], closer)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=9, frameon=False)
    canvas.draw()
    for axes, part in zip(panels, parts, strict=True):
        place(axes, _labels(points, part, closer), SMALL)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return True


def styles(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Returns a colour and a marker for each curve, in their order; the baseline is black."""
    baseline = next((point.curve for point in points if point.is_baseline), None)
    chosen = {} if baseline is None else {baseline: BASELINE_STYLE}
    others = dict.fromkeys(point.curve for point in points if point.curve != baseline)
    for index, curve in enumerate(others):
        chosen[curve] = (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
    return chosen


def _draw_panel(axes: Axes, points: Sequence[Point], part: Box | None) -> None:
    """Draws points, intervals, curves and the front, all of them or a part."""
    for curve, (colour, marker) in styles(points).items():
        members = sorted((p for p in points if p.curve == curve), key=lambda point: point.x)
        across, up = [p.x for p in members], [p.y for p in members]
        error = [[p.y - p.low for p in members], [p.high - p.y for p in members]]
        axes.plot(across, up, color=colour, linewidth=0.8, alpha=0.7)
        axes.errorbar(across, up, yerr=error, fmt="none", ecolor=colour, alpha=0.35)
        axes.scatter(across, up, s=36, c=colour, marker=marker, label=curve, zorder=3)
    if part is None:
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # as they are now, without the front
    else:
        axes.set(xlim=(part.left, part.right), ylim=(part.bottom, part.top))
        axes.set_title("around the threshold (dotted frame)", fontsize=10, loc="left")
    _draw_front(axes, points)
    axes.set_xlabel("tokens per forward (tokens before the first end token)")
    axes.set_ylabel("accuracy in %, with its 95 % Wilson interval")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draws the border of what some contender reaches: level with a point up to its speed."""
    leaders = sorted((p.x, p.y) for p in points if p.on_front)
    corners = [(0.0, leaders[0][1]), *leaders, (leaders[-1][0], 0.0)]
    across, up = [x for x, _ in corners], [y for _, y in corners]
    axes.plot(
        *(across, up),
        drawstyle="steps-pre",
        color=GREY,
        linestyle="--",
        linewidth=1,
        zorder=1,
        label="Pareto front",
    )


def _outline(axes: Axes, part: Box) -> None:
    """Marks the part of a panel that the other panel shows."""
    across = [part.left, part.right, part.right, part.left, part.left]
    up = [part.bottom, part.bottom, part.top, part.top, part.bottom]
    axes.plot(across, up, color=GREY, linewidth=0.8, linestyle=":")


def _labels(points: Sequence[Point], part: Box | None, closer: Box | None) -> list[Label]:
    """Returns the labels of a panel: a point has its text in the panel that shows it largest."""
    chosen, labels = styles(points), []
    for point in points:
        inside = closer is not None and closer.has(point.x, point.y)
        if part is not None and not inside:
            continue
        text = point.text if inside == (part is not None) else ""
        labels.append(Label(point.x, point.y, text, chosen[point.curve][0]))
    return labels
