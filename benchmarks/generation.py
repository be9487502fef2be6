"""Whole generations over batch, prompt and answer length: tokens a second, forwards and memory.

    python -m benchmarks.generation --shape 50m --speed fused+packed

One length is varied at a time, the others stay at their first value. All points take turns in
every round. The random network of a shape commits one token a step, so forwards follow from the
lengths; tokens a second include the refreshes.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dllm
from benchmarks.cost_curve import Point, points
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


def measure(model: dllm.HostedModel, point: Point, cache: str, block: int) -> dict[str, Any]:
    """Decodes a batch of random prompts."""
    generator = torch.Generator().manual_seed(0)
    size = (point.batch, point.prompt)
    prompts = torch.randint(0, model.spec.vocab_size - 2, size, generator=generator).tolist()
    metrics = dllm.generate(
        model,
        prompts,
        scheduler="fixed_quota",
        cache=cache,
        max_new_tokens=point.new_tokens,
        block_length=block,
        at_eos="ignore",
    ).metrics
    return {
        "tokens_per_second": metrics.raw_tokens / metrics.seconds,
        "forwards": metrics.num_forwards,
        "tokens_fed": metrics.tokens_fed,
        "store_mib": metrics.store_bytes / 2**20,
        "peak_mib": None
        if metrics.peak_memory_bytes is None
        else metrics.peak_memory_bytes / 2**20,
    }


def main(
    shape: ShapeName = "50m",
    batches: Batches = "1,2,4,8,16,32",
    prompts: Prompts = "64,128,256,512,1024,2048",
    answers: Answers = "64,128,256,512,1024",
    cache: Annotated[str, typer.Option(help="Name of a cache.")] = "dual",
    block: Block = 32,
    repeats: Repeats = 1,
    speed: Speed = "",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Measures generations of one shape."""
    torch.set_num_threads(threads)
    model = random_model(shape, getattr(torch, dtype), device)
    model = dllm.speed_up(model, *parse_ways(speed)) if speed else model
    wanted = points(*([int(n) for n in text.split(",")] for text in (batches, prompts, answers)))
    console = Console(stderr=True)
    measure(model, Point(1, 2 * block, 2 * block), cache, block)  # the first is slower
    rounds: list[list[dict[str, Any]]] = []
    for number in range(repeats):
        each = track(wanted, f"round {number + 1} of {repeats}", console=console)
        rounds.append([measure(model, point, cache, block) for _, point in each])
    rows = [
        _row(varied, point, [one[index] for one in rounds])
        for index, (varied, point) in enumerate(wanted)
    ]
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    settings = {"shape": shape, "dtype": dtype, "cache": cache, "block": block, "speed": speed}
    write({"machine": machine(device), **settings, "generations": rows}, output)


def _row(varied: str, point: Point, found: list[dict[str, Any]]) -> dict[str, Any]:
    speed = statistics.median(one["tokens_per_second"] for one in found)
    return {"varied": varied, **vars(point), **found[0], "tokens_per_second": speed}


if __name__ == "__main__":
    typer.run(main)
