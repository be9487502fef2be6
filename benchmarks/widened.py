"""A bfloat16 network on a CPU without bfloat16 arithmetic: widened products beside the others.

    ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.widened --layers 4 --threads 1

Passes of the layers of a 1.7B shape (SDAR, Qwen3) or of `--shape dream-7b`, fewer of them so that
memory is enough, and of its head: a refresh and block steps, in float32, in bfloat16, and in
bfloat16 widened, which take turns in one process. On a CPU that has the arithmetic the variable
above makes oneDNN do without. With `--rows`, one layer's products by their number of rows: where
the crossing lies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from copy import deepcopy
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
TIMES = "bfloat16 / widened"  # how many times as fast


def main(
    layers: Annotated[int, typer.Option(help="Layers of the shape, which has 28.")] = 4,
    shape: Annotated[str, typer.Option(help="1.7b, or one of benchmarks/shapes.py.")] = "1.7b",
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    repeats: Annotated[int, typer.Option(help="Turns.")] = 5,
    rows: Annotated[bool, typer.Option("--rows", help="Products by rows.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(PASSES)}.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Measures widened products."""
    unknown = [name for name in only or () if name not in PASSES]
    if unknown:
        raise typer.BadParameter(f"--only {unknown[0]}: known are {', '.join(PASSES)}")
    torch.set_num_threads(threads)
    of = SMALL if shape == "1.7b" else SHAPES[shape]
    of = replace(of, num_layers=layers)
    found = by_rows(of, repeats) if rows else by_pass(of, repeats, only or list(PASSES))
    table = Table(*found[0])
    for row in found:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(stderr=True).print(table)
    sizes = {"shape": shape, "layers": layers, "threads": threads}
    write({"machine": machine("cpu"), **sizes, "rows": found}, output)


Row = dict[str, float | int | str]


@torch.inference_mode()
def by_pass(shape: Shape, repeats: int, only: Sequence[str]) -> list[Row]:
    """Returns seconds of each pass, and the ratios to float32; and the bytes of the weights."""
    networks, found = networks_of(shape), []
    for name in only:
        columns = PASSES[name]
        tokens = torch.arange(columns)[None]
        plan = StepPlan("refresh", tokens, tokens[:, :32], columns)
        works = {kind: passing(network, tokens, plan) for kind, network in networks.items()}
        found.append({"pass": name, "columns": columns, **in_turns(works, repeats)})
    sizes = {
        kind: sum(weight.nbytes for weight in network.parameters()) / 2**20
        for kind, network in networks.items()
    }
    narrow, wide = sizes["bfloat16"] / sizes["float32"], sizes["widened"] / sizes["float32"]
    ratios = {"bfloat16 / float32": narrow, "widened / float32": wide, TIMES: 1.0}
    return [*found, {"pass": "weights, MiB", "columns": 0, **sizes, **ratios}]


def networks_of(shape: Shape) -> dict[str, Transformer]:
    """Returns networks of the same random weights, of which the widened one has no copy."""
    torch.manual_seed(0)
    with torch.device("meta"):
        wide = Transformer(shape.network)
    wide = wide.to_empty(device="cpu").eval().requires_grad_(False)
    for weight in wide.parameters():
        weight.uniform_(-0.02, 0.02)
    narrow = deepcopy(wide).bfloat16()
    shared = {id(weight): weight for weight in narrow.parameters()}
    widened = deepcopy(narrow, shared)
    widen(widened)
    return {"float32": wide, "bfloat16": narrow, "widened": widened}


def passing(network: Transformer, tokens: Tensor, plan: StepPlan) -> Callable[[], object]:
    """Returns one pass without a store."""
    return lambda: network(tokens, plan, None)


@torch.inference_mode()
def by_rows(shape: Shape, repeats: int) -> list[Row]:
    """Returns milliseconds of the products of two weights, by the number of rows."""
    torch.manual_seed(0)
    narrow, broad, found = shape.hidden_size, shape.intermediate_size, []
    for size in ((broad, narrow), (narrow, broad)):  # up, and down again
        weight = torch.randn(size).bfloat16()
        wide = weight.float()
        for count in ROWS:
            x = torch.randn(count, size[1]).bfloat16()
            works: dict[str, Callable[[], object]] = {
                "float32": partial(F.linear, x.float(), wide),
                "bfloat16": partial(F.linear, x, weight),
                "widened": partial(widened_product, x, weight, None),
            }
            found.append({"inputs": size[1], "rows": count, **in_turns(works, repeats)})
    return found


def in_turns(works: dict[str, Callable[[], object]], repeats: int) -> Row:
    """Returns median milliseconds of each work, and median ratios of those of one turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = perf_counter()
            work()
            if turn:  # the first makes buffers and the like
                seconds[name].append(perf_counter() - began)
    times = {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}

    def ratio(one: str, other: str) -> float:
        turns = zip(seconds[one], seconds[other], strict=True)
        return statistics.median(mine / theirs for mine, theirs in turns)

    over = {f"{one} / float32": ratio(one, "float32") for one in ("bfloat16", "widened")}
    return {**times, **over, TIMES: ratio("bfloat16", "widened")}


if __name__ == "__main__":
    typer.run(main)
