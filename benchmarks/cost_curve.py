"""The time of a refresh and of a block step against batch, prompt and answer length.

    python -m benchmarks.cost_curve --shape 50m --plot docs/figures/cost_curve.png

One length is varied at a time, the others stay at their first value. Of every generation only the
first refresh and a few steps are run: later ones of the same block cost the same.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import matplotlib as mpl
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dllm
from benchmarks.machine import machine, write
from benchmarks.options import (
    Answers,
    Batches,
    Block,
    Device,
    Dtype,
    Output,
    Prompts,
    Repeats,
    ShapeName,
    Speed,
    Threads,
)
from benchmarks.shapes import random_model
from dllm.models.speed import parse_ways

mpl.use("Agg")
from matplotlib import pyplot as plt


@dataclass(frozen=True)
class Point:
    """What a pass is measured at."""

    batch: int
    prompt: int
    new_tokens: int


@dataclass(frozen=True)
class Cost:
    """Medians over rounds."""

    varied: str
    batch: int
    prompt: int
    new_tokens: int
    refresh_ms: float
    step_ms: float
    tokens_per_second: float  # of steps that commit one token a row
    store_mib: float
    peak_mib: float | None  # device memory; None on a CPU


def points(batches: list[int], prompts: list[int], answers: list[int]) -> list[tuple[str, Point]]:
    """Returns every point with the name of what it varies."""
    first = Point(batches[0], prompts[0], answers[0])
    found = [("batch", replace(first, batch=n)) for n in batches]
    found += [("prompt", replace(first, prompt=n)) for n in prompts]
    return found + [("new_tokens", replace(first, new_tokens=n)) for n in answers]


def measure(model: dllm.HostedModel, point: Point, block: int, count: int) -> dict[str, float]:
    """Returns milliseconds of the first refresh and the median of some steps after it."""
    generator = torch.Generator().manual_seed(0)
    size = (point.batch, point.prompt)
    prompts = torch.randint(0, model.spec.vocab_size - 2, size, generator=generator).tolist()
    running = dllm.stream(
        model,
        prompts,
        scheduler="fixed_quota",
        cache="dual",
        max_new_tokens=point.new_tokens,
        block_length=block,
        at_eos="ignore",
    )
    events, times = iter(running), []
    for _ in range(count + 1):
        start = perf_counter()
        next(events)  # the transfer of a step has waited for the device
        times.append(1e3 * (perf_counter() - start))
    metrics = running.output.metrics
    peak = metrics.peak_memory_bytes
    return {
        "refresh_ms": times[0],
        "step_ms": statistics.median(times[2:]),
        "store_mib": metrics.store_bytes / 2**20,
        "peak_mib": float("nan") if peak is None else peak / 2**20,
    }


def draw(path: Path, title: str, costs: list[Cost]) -> None:
    """Draws both times over each of the three."""
    labels = {"batch": "rows", "prompt": "prompt tokens", "new_tokens": "answer slots"}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        line = [cost for cost in costs if cost.varied == name]
        along = [getattr(cost, name) for cost in line]
        axis.plot(along, [cost.step_ms for cost in line], marker="o", label="block step")
        axis.plot(along, [cost.refresh_ms for cost in line], marker="s", label="refresh")
        axis.set(xlabel=label, ylabel="ms", xscale="log", yscale="log", xticks=along)
        axis.set_xticklabels([str(n) for n in along])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(
    shape: ShapeName = "50m",
    batches: Batches = "1,2,4,8,16,32",
    prompts: Prompts = "64,128,256,512,1024,2048",
    answers: Answers = "64,128,256,512,1024",
    block: Block = 32,
    steps: Annotated[int, typer.Option(help="Steps after each refresh.")] = 5,
    repeats: Repeats = 3,
    speed: Speed = "",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = 1,
    plot: Annotated[Path | None, typer.Option(help="PNG.")] = None,
    output: Output = None,
) -> None:
    """Measures the cost curve of one shape."""
    torch.set_num_threads(threads)
    model = random_model(shape, getattr(torch, dtype), device)
    model = dllm.speed_up(model, *parse_ways(speed)) if speed else model
    wanted = points(*([int(n) for n in text.split(",")] for text in (batches, prompts, answers)))
    rounds: list[list[dict[str, float]]] = []
    console = Console(stderr=True)
    for _ in track(range(repeats), "rounds", console=console):
        rounds.append([measure(model, point, block, steps) for _, point in wanted])
    costs = [
        _cost(varied, point, [one[index] for one in rounds])
        for index, (varied, point) in enumerate(wanted)
    ]
    where = f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else device
    title = f"{shape}, {dtype}, dual cache, blocks of {block}, batch 1 unless varied, {where}"
    _report(console, title, costs)
    if plot is not None:
        draw(plot, title, costs)
    settings: dict[str, Any] = {"shape": shape, "dtype": dtype, "block": block, "speed": speed}
    record = {"machine": machine(device), **settings, "costs": [asdict(cost) for cost in costs]}
    write(record, output)


def _cost(varied: str, point: Point, found: list[dict[str, float]]) -> Cost:
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    peak = middle["peak_mib"]
    return Cost(
        varied=varied,
        batch=point.batch,
        prompt=point.prompt,
        new_tokens=point.new_tokens,
        refresh_ms=middle["refresh_ms"],
        step_ms=middle["step_ms"],
        tokens_per_second=1e3 * point.batch / middle["step_ms"],
        store_mib=middle["store_mib"],
        peak_mib=None if math.isnan(peak) else peak,
    )


def _report(console: Console, title: str, costs: list[Cost]) -> None:
    names = [*("varied", "batch", "prompt", "new_tokens"), "refresh_ms", "step_ms"]
    names += ["tokens_per_second", "store_mib"]
    table = Table(*(name.replace("_", " ") for name in names), title=title)
    for cost in costs:
        values = [getattr(cost, name) for name in names]
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in values))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
