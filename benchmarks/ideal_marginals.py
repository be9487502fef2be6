"""The limits of decoding in parallel: schedulers on a model that knows every right answer.

    python benchmarks/ideal_marginals.py --rows 2000 --output docs/figures

The model returns exact conditionals (`dllm.eval.tasks.parallel_bench.ideal`), tokens are drawn at
temperature 1, and whatever is wrong is the scheduler's doing. Prints a Markdown table and draws
`ideal_marginals.png`.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dllm
from dllm.eval.tasks.parallel_bench import FAMILIES
from dllm.eval.tasks.parallel_bench import ideal as closed_forms
from dllm.eval.tasks.parallel_bench.ideal import Ideal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_NAMES = 6
LEAST_ANSWERS = 6  # fewer, as some Latin squares have, say little
SHOWN = ("replace_random", "remove_random", "shuffle", "latin_square")
BATCH = 500
COUNTS = (1, 2, 3, 4, 6, 8, 16)
CURVES = {
    "fixed_quota": [f"fixed_quota:{steps}" for steps in COUNTS],
    "fixed_quota, random order": [f"fixed_quota:{steps},order=random" for steps in COUNTS],
    "threshold": [f"threshold:{t}" for t in (0.95, 0.85, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1)],
    "factor": [f"factor:{f}" for f in (0.1, 0.25, 0.5, 1.0, 1.5, 2.5)],
    "entropy_bound": [f"entropy_bound:{b}" for b in (0.1, 0.3, 0.5, 0.8, 1.2, 2.0, 4.0, 8.0)],
}
FORMS = {"shuffle": closed_forms.shuffle_sampled, "replace_random": closed_forms.replace_sampled}


@dataclass(frozen=True)
class Point:
    """What a setting gave."""

    scheduler: str
    tokens_per_forward: float
    accuracy: float

    def row(self, family: str) -> str:
        """Returns a line of the Markdown table."""
        accuracy, speed = 100 * self.accuracy, self.tokens_per_forward
        return f"| `{family}` | `{self.scheduler}` | {accuracy:.1f} | {speed:.2f} |"


def ideal_of(family: str) -> Ideal:
    """Returns the uniform distribution over the right answers of one question."""
    source = random.Random(0)
    while True:
        ideal = Ideal.over(FAMILIES[family](source, NUM_NAMES).outputs())
        if len(ideal.outputs) >= LEAST_ANSWERS:
            return ideal


def measure(ideal: Ideal, scheduler: str, rows: int) -> Point:
    """Draws that many answers under a scheduler."""
    right, tokens, forwards = 0.0, 0, 0
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        out = dllm.generate(
            ideal.model,
            [ideal.prompt] * count,
            scheduler=scheduler,
            max_new_tokens=ideal.num_tokens,
            block_length=ideal.num_tokens,
            temperature=1.0,
            seed=start,
        )
        right += ideal.accuracy(out) * count
        tokens += out.metrics.valid_tokens
        forwards += sum(row.forwards for row in out.metrics.rows)
    return Point(scheduler, tokens / forwards, right / rows)


def draw(
    panels: Mapping[str, tuple[Ideal, Mapping[str, list[Point]]]], title: str, file: Path
) -> None:
    """Draws a panel for each family: accuracy over tokens per forward."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (family, (ideal, curves)) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, family, ideal, curves)
    grid[0].set_ylabel("accuracy in %")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=96)


def _draw_panel(axes: Axes, family: str, ideal: Ideal, curves: Mapping[str, list[Point]]) -> None:
    if family in FORMS:
        steps = range(1, ideal.num_tokens + 1)
        sizes = [_even(ideal.num_tokens, count) for count in steps]
        exact = [100 * float(FORMS[family](parts)) for parts in sizes]
        speed = [ideal.num_tokens / count for count in steps]
        axes.plot(speed, exact, color="0.75", linewidth=5, label="closed form, random order")
    for (label, points), marker in zip(curves.items(), "os^Dv", strict=False):
        speed = [point.tokens_per_forward for point in points]
        accuracy = [100 * point.accuracy for point in points]
        axes.plot(speed, accuracy, marker=marker, markersize=5, linewidth=1, alpha=0.8, label=label)
    bits = f"{len(ideal.outputs)} answers, {ideal.total_correlation:.2f} bits"
    axes.set_title(f"{family}\n{bits}", fontsize=10)
    axes.set(xlabel="tokens per forward", ylim=(-3, 103))
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _even(tokens: int, steps: int) -> list[int]:
    """Returns how many tokens each step of `fixed_quota` commits, larger quotas first."""
    return [math.ceil((tokens - step) / steps) for step in range(steps)]


def main() -> None:
    """Measures all curves and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000, help="answers drawn for each setting")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    if options.rows < 1:
        parser.error(f"--rows {options.rows} must be at least 1")
    print("| family | scheduler | accuracy % | tokens/forward |")
    print("|---|---|---|---|")
    panels: dict[str, tuple[Ideal, dict[str, list[Point]]]] = {}
    for family in SHOWN:
        ideal = ideal_of(family)
        curves: dict[str, list[Point]] = {}
        panels[family] = ideal, curves
        for label, settings in CURVES.items():
            curves[label] = [measure(ideal, scheduler, options.rows) for scheduler in settings]
            for point in curves[label]:
                print(point.row(family), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    title = f"exact conditionals, {options.rows} draws at temperature 1, lines of {NUM_NAMES} names"
    draw(panels, title, options.output / "ideal_marginals.png")


if __name__ == "__main__":
    main()
