"""How many schedule steps a pass over n canvases must make certain to pay for itself.

    python -m benchmarks.break_even --shape 50m

Prints the time of a block step over n canvases of a row, as rows (`batch`) and end to end (`tree`),
over the time of a step over one: c(n) of docs/guides/verifier.md. A verifier gains where it makes
more than c(n) steps certain a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import dllm
from benchmarks.machine import machine, ratio, rounds, write
from benchmarks.shapes import random_model
from dllm.decoding.speculation.execution import as_tree
from dllm.state.plan import StepPlan

WAYS = ("batch", "tree")


def block_step(model: dllm.HostedModel, num_keys: int, width: int) -> StepPlan:
    """Returns a pass of the dual cache: the last `width` of `num_keys` columns are fed."""
    columns = torch.arange(num_keys - width, num_keys, device=model.device)[None]
    head = torch.arange(width, device=model.device)[None]
    return StepPlan("step", columns, head, num_keys, stored=columns)


def work(
    model: dllm.HostedModel, num_keys: int, width: int, count: int, way: str
) -> Callable[[], object]:
    """Returns a pass over `count` canvases that can be timed."""
    plan = block_step(model, num_keys, width)
    if way == "batch":
        rows = torch.zeros(count, dtype=torch.int64, device=model.device)
        plan, num_rows = plan.of_rows(rows), count
    else:
        plan, num_rows = as_tree(plan, count) if count > 1 else plan, 1
    store = model.new_store(num_rows, num_keys)
    tokens = torch.randint(0, model.spec.vocab_size - 2, plan.positions.shape, device=model.device)

    @torch.inference_mode()
    def run() -> object:
        return model.forward(tokens, plan, store).argmax(-1)

    return run


def main(
    shape: Annotated[str, typer.Option(help="One of benchmarks/shapes.py.")] = "50m",
    num_keys: Annotated[int, typer.Option(help="Columns that a step attends to.")] = 256,
    width: Annotated[int, typer.Option(help="Columns of the block.")] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 15,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Measures c(n) for one to nine canvases."""
    model = random_model(shape, getattr(torch, dtype), device)
    counts = (1, 2, 3, 5, 9)
    pairs = [(way, count) for way in WAYS for count in counts]
    taken = rounds([work(model, num_keys, width, n, way) for way, n in pairs], repeats, device)
    found = {way: dict[int, float]() for way in WAYS}
    for (way, count), seconds in zip(pairs, taken, strict=True):
        found[way][count] = ratio(seconds, taken[0])
    table = Table(
        "", *map(str, counts), title=f"{shape}: block of {width}, {num_keys} keys, {dtype}"
    )
    for way, costs in found.items():
        table.add_row(way, *(f"{cost:.2f}" for cost in costs.values()))
    Console(stderr=True).print(table)
    record = {"shape": shape, "num_keys": num_keys, "width": width, "dtype": dtype, "cost": found}
    write({"machine": machine(device), **record}, output)


if __name__ == "__main__":
    typer.run(main)
