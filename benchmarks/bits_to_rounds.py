"""Rounds against information: what a threshold commits in a round, and what exploring adds.

    python benchmarks/bits_to_rounds.py --limit 500 --output docs/figures

Prints a Markdown table of held-out word problems on the embedded model and draws
`bits_to_rounds.png`. A round is a forward pass; a row-forward is a row of one, so a round of k
variants costs k. Bits are -log2 of the probability of each token when it was committed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import dllm
from dllm.eval.run.summary import wilson
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import Problem, Split

BATCH = 100
CURVES = {
    "threshold": [f"threshold:{t}" for t in (0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8)],
    "ETE-R, 3 alternatives": [f"ete:0.98,likelihood_weight={w}" for w in (12, 8, 6, 4)],
    "ETE-R, 1 alternative": [
        f"ete:0.99,alternatives=1,likelihood_weight={w}" for w in (12, 8, 6, 4)
    ],
    "ETE-R as in the abstract": ["ete@paper_like"],
    "ETE-R, one row (commit)": ["ete:0.98,mode=commit"],
}


@dataclass(frozen=True)
class Point:
    """What a setting gave on all problems; counts are per problem."""

    scheduler: str
    accuracy: float
    interval: tuple[float, float]
    rounds: float
    row_forwards: float
    tokens: float
    bits: float

    def row(self) -> str:
        """Returns a line of the Markdown table."""
        low, high = self.interval
        return (
            f"| `{self.scheduler}` | {100 * self.accuracy:.1f} ({100 * low:.1f} to "
            f"{100 * high:.1f}) | {self.rounds:.2f} | {self.row_forwards:.2f} | "
            f"{self.tokens / self.rounds:.2f} | {self.bits / self.rounds:.3f} |"
        )


def measure(model: dllm.HostedModel, scheduler: str, problems: list[Problem]) -> Point:
    """Decodes all problems under a scheduler."""
    task, total = find_task("arithmetic"), len(problems)
    right, rounds, row_forwards, tokens, bits = 0, 0, 0, 0, 0.0
    for start in range(0, total, BATCH):
        batch = problems[start : start + BATCH]
        out = dllm.generate(model, [p.prompt for p in batch], scheduler=scheduler, seed=0)
        assert out.texts is not None
        right += sum(task.is_correct(p, text) for p, text in zip(batch, out.texts, strict=True))
        rounds += sum(row.forwards for row in out.metrics.rows)
        row_forwards += sum(row.row_forwards for row in out.metrics.rows)
        tokens += out.metrics.valid_tokens
        bits += sum(out.trace.bits(row) for row in range(len(batch)))
    return Point(
        scheduler=scheduler,
        accuracy=right / total,
        interval=wilson(right, total),
        rounds=rounds / total,
        row_forwards=row_forwards / total,
        tokens=tokens / total,
        bits=bits / total,
    )


def draw(curves: dict[str, list[Point]], title: str, file: Path) -> None:
    """Draws accuracy over rounds, and bits a round over rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for (label, points), marker in zip(curves.items(), "osD^v", strict=True):
        rounds = [p.rounds for p in points]
        accuracy = [100 * p.accuracy for p in points]
        low = [100 * (p.accuracy - p.interval[0]) for p in points]
        high = [100 * (p.interval[1] - p.accuracy) for p in points]
        left.errorbar(
            rounds, accuracy, [low, high], marker=marker, label=label, elinewidth=0.6, alpha=0.85
        )
        right.plot(rounds, [p.bits / p.rounds for p in points], marker=marker, alpha=0.85)
    left.set(xlabel="rounds a problem", ylabel="accuracy in %, 95 % Wilson interval")
    right.set(xlabel="rounds a problem", ylabel="bits committed a round", yscale="log")
    left.legend(loc="lower right", fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measures all curves and draws them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=500, help="problems")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    split: Split = options.split
    problems = find_task("arithmetic").take(options.limit, split)
    problems.sort(key=lambda problem: len(problem.prompt))
    model = dllm.load("tiny")
    print("| scheduler | accuracy % | rounds | row-forwards | tokens a round | bits a round |")
    print("|---|---|---|---|---|---|")
    curves: dict[str, list[Point]] = {label: [] for label in CURVES}
    for label, schedulers in CURVES.items():
        for scheduler in schedulers:
            curves[label].append(measure(model, scheduler, problems))
            print(curves[label][-1].row(), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    title = f"arithmetic, {len(problems)} {split} problems, tiny, 64 new tokens, blocks of 16"
    draw(curves, title, options.output / "bits_to_rounds.png")


if __name__ == "__main__":
    main()
