"""What a scheduler and a cache gain over one token a step, and what the loop itself costs.

    python -m benchmarks.decode --batch-size 16 --repeats 5

Every line is measured in turn, round after round, and compared with the first line of its own
round; the median of the ratios is printed. `loop` is the part of the time that is not spent in
the model: planning, candidates, scheduling, committing and waiting for the host.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dllm
from benchmarks.passes import Watched
from dllm.eval.tasks import TASKS

COMPARED = (
    ("fixed_quota", "none"),
    ("fixed_quota", "prefix"),
    ("fixed_quota", "dual"),
    ("threshold:0.9", "none"),
    ("threshold:0.9", "prefix"),
    ("threshold:0.9", "dual"),
    ("factor:1.0", "dual"),
)


@dataclass(frozen=True)
class Line:
    """One measurement of one combination."""

    tokens_per_second: float
    tokens_per_forward: float
    tokens_fed: int
    loop: float  # part of the time outside the model


def measure(model: dllm.HostedModel, prompts: list[str], scheduler: str, cache: str) -> Line:
    """Decodes the prompts once."""
    watched: Any = Watched(model)
    out = dllm.generate(watched, prompts, scheduler=scheduler, cache=cache, at_eos="ignore")
    metrics = out.metrics
    return Line(
        tokens_per_second=metrics.raw_tokens / metrics.seconds,
        tokens_per_forward=metrics.raw_tokens_per_forward,
        tokens_fed=metrics.tokens_fed,
        loop=1 - sum(watched.seconds) / metrics.seconds,
    )


def main(
    model: Annotated[str, typer.Option(help='"tiny", a folder or a hub id.')] = "tiny",
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together.")] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds; the first one is not counted.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measures every combination and prints ratios to the first."""
    loaded = dllm.load(model, device=device)
    prompts = [problem.prompt for problem in TASKS["arithmetic"].take(batch_size)]
    rounds: list[list[Line]] = []
    for _ in track(range(repeats + 1), console=Console(stderr=True), description="measuring"):
        rounds.append([measure(loaded, prompts, *combination) for combination in COMPARED])
    report(rounds[1:], as_json, f"{platform.machine()}, torch {torch.__version__}, {device}")


def report(rounds: list[list[Line]], as_json: bool, machine: str) -> None:
    """Prints the medians over rounds."""
    rows = []
    for index, (scheduler, cache) in enumerate(COMPARED):
        lines = [one[index] for one in rounds]
        ratios = [one[index].tokens_per_second / one[0].tokens_per_second for one in rounds]
        row = {
            "scheduler": scheduler,
            "cache": cache,
            "tokens_per_second": statistics.median(line.tokens_per_second for line in lines),
            "speed_up": statistics.median(ratios),
            "tokens_per_forward": lines[0].tokens_per_forward,
            "tokens_fed": lines[0].tokens_fed,
            "loop": statistics.median(line.loop for line in lines),
        }
        rows.append(row)
    if as_json:
        print(json.dumps({"machine": machine, "rows": rows}))
        return
    table = Table(*rows[0], title=machine)
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
