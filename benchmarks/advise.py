"""What `dllm advise --measure` predicts of whole answers, beside what they take.

    python -m benchmarks.advise --shape 50m

Figures of the machine are taken once, at the first of all settings; every setting is predicted
from them, then measured: `dllm.generate` with `fixed_quota`, random tokens, no way of `speed`, no
answer ended early. The median over rounds counts, in which all settings take turns.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import dllm
from benchmarks.machine import machine, rounds, write
from benchmarks.options import Batches, Block, Device, Dtype, Output, Repeats, ShapeName, Threads
from benchmarks.options import Prompts as Lengths
from benchmarks.shapes import random_model
from dllm.advice import Bench, Network, Workload, measure, passes_of, total_seconds
from dllm.settings import Settings

CACHES = ("none", "prefix", "dual")
WITHIN = 0.25  # of what is measured


def work(model: dllm.HostedModel, cache: str, asked: Workload) -> Callable[[], object]:
    """Returns a generation that can be timed."""
    settings = Settings(
        scheduler=f"fixed_quota:tokens_per_step={asked.tokens_per_step}",
        cache=cache,
        max_new_tokens=asked.answer_length,
        min_new_tokens=asked.answer_length,
        block_length=asked.block_length,
    )
    size = (asked.batch, asked.prompt_length)
    drawn = torch.randint(0, model.spec.vocab_size - 2, size, generator=torch.Generator())
    prompts = drawn.tolist()
    return lambda: dllm.generate(model, prompts, settings)


def main(
    shape: ShapeName = "50m",
    batches: Batches = "1,4",
    prompts: Lengths = "32,128",
    answer: Annotated[int, typer.Option(help="Slots of an answer.")] = 32,
    tokens: Annotated[str, typer.Option(help="Tokens of a step.")] = "1,4",
    block: Block = 16,
    repeats: Repeats = 3,
    threads: Threads = 1,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    output: Output = None,
) -> None:
    """Prints predicted and measured seconds of each setting, and their ratio."""
    torch.set_num_threads(threads)
    model = random_model(shape, getattr(torch, dtype), device)
    network = Network(model.network.config, model.dtype.itemsize)
    grid = itertools.product(*([int(n) for n in t.split(",")] for t in (batches, prompts, tokens)))
    asked = [Workload(prompt, answer, block, batch, each) for batch, prompt, each in grid]
    pairs = [(cache, one) for one in asked for cache in CACHES]
    figures = measure(Bench(network, model.dtype, model.device), asked[0])
    predicted = [total_seconds(network, passes_of(c, one), figures) for c, one in pairs]
    taken = rounds([work(model, *pair) for pair in pairs], repeats, device)
    measured = [statistics.median(seconds) for seconds in taken]
    ratios = [p / m for p, m in zip(predicted, measured, strict=True)]
    near = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    console, table = Console(), Table(title=f"{shape}, {dtype}, seconds of an answer")
    for name in ("cache", "rows", "prompt", "tokens a step", "predicted", "measured", "ratio"):
        table.add_column(name, justify="left" if name == "cache" else "right")
    for (cache, one), *times in zip(pairs, predicted, measured, ratios, strict=True):
        lengths = map(str, (one.batch, one.prompt_length, one.tokens_per_step))
        table.add_row(cache, *lengths, *(f"{number:.3f}" for number in times))
    console.print(table)
    console.print(f"{near} of {len(ratios)} within {WITHIN:.0%}")
    results = zip(pairs, predicted, measured, ratios, strict=True)
    settings = [
        {"cache": c, **asdict(one), "predicted": p, "measured": m, "ratio": r}
        for (c, one), p, m, r in results
    ]
    if output is not None:
        record = {"machine": machine(device), "shape": shape, "figures": asdict(figures)}
        write({**record, "within": near, "settings": settings}, output)


if __name__ == "__main__":
    typer.run(main)
