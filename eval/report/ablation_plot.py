"""An ablation's Pareto plots as PNG: accuracy over tokens per forward and per second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllm.eval.report.ablation import Report
from dllm.eval.report.labels import Label, place
from dllm.eval.report.lines import Line, Speed, front, groups
from dllm.eval.report.plot import COLOURS, DOTS_PER_INCH, GREY, MARKERS, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, LEGEND, HEIGHT = 6.0, 2.6, 5.0  # inches
_SPEEDS: tuple[Speed, Speed] = ("tokens_per_forward", "tokens_per_second")


def draw(path: Path, report: Report) -> bool:
    """Writes a row of two plots for each model, task and number of slots; False without any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = groups(report.lines)
    if not drawn:
        return False
    size = (2 * PANEL + LEGEND, HEIGHT * len(drawn))
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(drawn), 2, squeeze=False)
    for (group, lines), row in zip(drawn.items(), panels, strict=True):
        for axes, speed in zip(row, _SPEEDS, strict=True):
            _panel(axes, lines, speed)
        row[0].set_title(f"{group[0]}, {group[1]}, {group[2]} new tokens", loc="left", fontsize=10)
        row[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, frameon=False)
    canvas.draw()  # labels are placed by what is measured
    for (_, lines), row in zip(drawn.items(), panels, strict=True):
        colours = _styles(lines)
        for axes, speed in zip(row, _SPEEDS, strict=True):
            place(axes, [_label(line, speed, colours[line.method][0]) for line in lines], SMALL)
    figure.savefig(path, format="png")
    return True


def _styles(lines: Sequence[Line]) -> dict[str, tuple[str, str]]:
    methods = dict.fromkeys(line.method for line in lines)
    return {
        method: (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])
        for index, method in enumerate(methods)
    }


def _panel(axes: Axes, lines: Sequence[Line], speed: Speed) -> None:
    for method, (colour, marker) in _styles(lines).items():
        members = sorted((ln for ln in lines if ln.method == method), key=lambda x: x.speed(speed))
        across, up = [line.speed(speed) for line in members], [_accuracy(line) for line in members]
        low = [line.summary.accuracy_low for line in members if line.summary]
        high = [line.summary.accuracy_high for line in members if line.summary]
        error = [
            [y - 100 * least for y, least in zip(up, low, strict=True)],
            [100 * most - y for y, most in zip(up, high, strict=True)],
        ]
        axes.plot(across, up, color=colour, linewidth=0.8, alpha=0.6)
        axes.errorbar(across, up, yerr=error, fmt="none", ecolor=colour, alpha=0.3)
        axes.scatter(across, up, s=30, c=colour, marker=marker, label=method, zorder=3)
    axes.set(xlim=(0, None), ylim=axes.get_ylim())
    axes.set(xlim=axes.get_xlim())  # as they are now, without the front
    _front(axes, lines, speed)
    axes.set_xlabel(speed.replace("_", " "))
    axes.set_ylabel("accuracy in %, with its 95 % interval")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _front(axes: Axes, lines: Sequence[Line], speed: Speed) -> None:
    numbers = front(lines, speed)
    leaders = sorted((ln.speed(speed), _accuracy(ln)) for ln in lines if ln.number in numbers)
    corners = [(0.0, leaders[0][1]), *leaders, (leaders[-1][0], 0.0)]
    across, up = [x for x, _ in corners], [y for _, y in corners]
    (line,) = axes.plot(across, up, color=GREY, linestyle="--", linewidth=1, label="Pareto front")
    line.set(drawstyle="steps-pre", zorder=1)


def _label(line: Line, speed: Speed, colour: str) -> Label:
    return Label(line.speed(speed), _accuracy(line), str(line.number), colour)


def _accuracy(line: Line) -> float:
    assert line.summary is not None
    return 100 * line.summary.accuracy
