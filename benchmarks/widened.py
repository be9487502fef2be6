"""A bfloat16 network on a CPU without bfloat16 arithmetic: widened products beside the others.

    ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.widened --layers 4 --threads 1

Passes of the layers of a 1.7B shape (SDAR, Qwen3) or of `--shape dream-7b`, fewer of them so that
memory is enough, and of its head: a refresh and block steps, in float32, in bfloat16, and in
bfloat16 widened, which take turns in one process. On a CPU that has the arithmetic the variable
above makes oneDNN do without.
With `--rows`, one layer's products by their number of rows: where the crossing lies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import machine, write
from benchmarks.shapes import SHAPES, Shape
from dllm.models.speed.widened import widen, widened_product
from dllm.models.transformer import Transformer
from dllm.state.plan import StepPlan

SMALL = Shape(2048, 28, 16, 8, 6144, 151936)
PASSES = {"refresh": 256, "step": 32, "short step": 8, "token": 1}  # fed columns
ROWS = (1, 2, 3, 4, 5, 6, 8, 16, 32, 64, 256)


def main(
    layers: Annotated[int, typer.Option(help="Layers of the shape, which has 28.")] = 4,
    shape: Annotated[str, typer.Option(help="1.7b, or one of benchmarks/shapes.py.")] = "1.7b",
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(help="Turns.")] = 5,
    rows: Annotated[bool, typer.Option("--rows", help="Products by rows.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Measures widened products."""
    torch.set_num_threads(threads)
    of = SMALL if shape == "1.7b" else SHAPES[shape]
    found = by_rows(of, repeats) if rows else by_pass(replace(of, num_layers=layers), repeats)
    table = Table(*found[0])
    for row in found:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(stderr=True).print(table)
    sizes = {"shape": shape, "layers": layers, "threads": threads}
    write({"machine": machine("cpu"), **sizes, "rows": found}, output)


Row = dict[str, float | int | str]


@torch.inference_mode()
def by_pass(shape: Shape, repeats: int) -> list[Row]:
    """Returns seconds of each pass, and the ratios to float32; and the bytes of the weights."""
    networks = {name: network_of(shape, name) for name in ("float32", "bfloat16", "widened")}
    found = []
    for name, columns in PASSES.items():
        tokens = torch.arange(columns)[None]
        plan = StepPlan("refresh", tokens, tokens[:, :32], columns)
        works = {kind: passing(network, tokens, plan) for kind, network in networks.items()}
        found.append({"pass": name, "columns": columns, **in_turns(works, repeats)})
    sizes = {
        kind: sum(weight.nbytes for weight in network.parameters()) / 2**20
        for kind, network in networks.items()
    }
    narrow, wide = sizes["bfloat16"] / sizes["float32"], sizes["widened"] / sizes["float32"]
    ratios = {"bfloat16 / float32": narrow, "widened / float32": wide}
    return [*found, {"pass": "weights, MiB", "columns": 0, **sizes, **ratios}]


def network_of(shape: Shape, kind: str) -> Transformer:
    """Returns a network of random weights; all kinds have the same."""
    torch.manual_seed(0)
    config = shape.network
    dtype, usual = torch.float32 if kind == "float32" else torch.bfloat16, torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        network = Transformer(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    if kind == "widened":
        widen(network)
    return network


def passing(network: Transformer, tokens: Tensor, plan: StepPlan) -> Callable[[], object]:
    """Returns one pass without a store."""
    return lambda: network(tokens, plan, None)


@torch.inference_mode()
def by_rows(shape: Shape, repeats: int) -> list[Row]:
    """Returns milliseconds of the products of one weight, by the number of rows."""
    torch.manual_seed(0)
    weight = torch.randn(shape.intermediate_size, shape.hidden_size).bfloat16()
    wide, found = weight.float(), []
    for count in ROWS:
        x = torch.randn(count, shape.hidden_size).bfloat16()
        works: dict[str, Callable[[], object]] = {
            "float32": partial(F.linear, x.float(), wide),
            "bfloat16": partial(F.linear, x, weight),
            "widened": partial(widened_product, x, weight, None),
        }
        found.append({"rows": count, **in_turns(works, repeats)})
    return found


def in_turns(works: dict[str, Callable[[], object]], repeats: int) -> Row:
    """Returns median milliseconds of each work, and the median ratios to the first, by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = perf_counter()
            work()
            if turn:  # the first makes buffers and the like
                seconds[name].append(perf_counter() - began)
    first = next(iter(works))
    times = {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}
    ratios = {
        f"{name} / {first}": statistics.median(
            one / other for one, other in zip(taken, seconds[first], strict=True)
        )
        for name, taken in seconds.items()
        if name != first
    }
    return {**times, **ratios}


if __name__ == "__main__":
    typer.run(main)
