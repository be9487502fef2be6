"""One step against its floor, and one generation against the textbook loop, in the same run.

    python -m benchmarks.step --shape 50m --threads 1

Every round runs all of these in turn, and ratios are taken within a round: the decoding of this
project; the same passes' matrix products alone (the floor); the textbook loop of
benchmarks/naive.py with the same dual cache, and without a cache.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import dllm
from benchmarks.machine import machine, ratio, rounds, write
from benchmarks.naive import Naive
from benchmarks.passes import Floor, PassShape, Watched
from benchmarks.roofs import measure_roofs
from benchmarks.shapes import random_model
from dllm.models.speed import parse_ways

OVERHEAD = (
    *(("fixed_quota", cache) for cache in ("none", "prefix", "dual")),
    *(("threshold:0.9", cache) for cache in ("none", "dual")),
    *((name, "dual") for name in ("factor:1.0", "localleap", "entropy_bound", "prophet", "klass")),
    ("fixed_quota", "dkv"),
)


@dataclass
class Case:
    """A prompt and how it is decoded."""

    model: dllm.HostedModel  # of the floor
    textbook: dllm.HostedModel  # of the textbook loop: the same in its own dtype
    quick: dllm.HostedModel  # the same weights, sped up
    prompt: list[int]
    new_tokens: int
    block: int
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def ours(
        self, name: str, cache: str, model: Any = None, scheduler: str = "fixed_quota"
    ) -> None:
        """Decodes with this project and keeps the tokens."""
        out = dllm.generate(
            self.quick if model is None else model,
            [self.prompt],
            scheduler=scheduler,
            cache=cache,
            max_new_tokens=self.new_tokens,
            block_length=self.block,
            at_eos="ignore",
        )
        self.tokens[name] = list(out.sequences[0])

    def naive(self, name: str, *, dual: bool) -> None:
        """Decodes with the textbook loop and keeps the tokens."""
        loop = Naive(self.textbook)
        self.tokens[name] = loop.generate(self.prompt, self.new_tokens, self.block, dual=dual)

    def passes(self, cache: str) -> list[PassShape]:
        """Returns the shapes of the passes of a decoding."""
        watched = Watched(self.quick)
        self.ours("watched", cache, watched)
        return watched.shapes


def of_kinds(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Returns the time of the model's passes of each kind, beside three floors of the same passes.

    `products_ms` are the products alone, measured; `bytes_ms` and `flops_ms` what the weights and
    keys take at the measured bandwidth, and the operations at the measured rate of products.
    """
    roofs = measure_roofs(case.model.device, case.model.dtype, repeats)
    causal = replace(case.model.spec, attention="block_causal", block_length=case.block)
    chunked = f"block_causal:prefill_chunk={case.block}"  # reads the prompt in passes of its own
    found = []
    for cache, kind in (("dual", "refresh"), ("dual", "step"), (chunked, "commit")):
        if kind == "commit" and len(case.prompt) <= case.block:
            continue  # read with the first step
        quick = replace(case.quick, spec=causal) if kind == "commit" else case.quick
        taken: list[tuple[float, float]] = []
        for number in range(repeats + 1):
            watched = Watched(quick)
            case.ours("kinds", cache, watched)
            every = zip(watched.shapes, watched.seconds, strict=True)
            these = [(shape, seconds) for shape, seconds in every if shape.kind == kind]
            start = perf_counter()
            Floor(case.model, [shape for shape, _ in these]).run()
            if number:
                taken.append((sum(s for _, s in these), perf_counter() - start))
        floors = [roofs.floor(case.model, shape.plan) for shape, _ in these]
        mean = 1e3 / len(these)
        found.append(
            {
                "kind": kind,
                "passes": len(these),
                "ms": mean * statistics.median(ours for ours, _ in taken),
                "products_ms": mean * statistics.median(products for _, products in taken),
                "bytes_ms": statistics.fmean(floor["bytes_ms"] for floor in floors),
                "flops_ms": statistics.fmean(floor["flops_ms"] for floor in floors),
            }
        )
    return found


def of_steps(case: Case, repeats: int) -> dict[str, float]:
    """Returns the time of the block steps of a decoding over that of their products alone.

    Steps and floor alternate generation by generation; a step is all from one event to the next.
    """
    shapes = [shape for shape in case.passes("dual") if shape.kind == "step"]
    floor, found = Floor(case.model, shapes), []
    for number in range(repeats + 1):
        steps = _steps_of(case)
        start = perf_counter()
        floor.run()
        products = perf_counter() - start
        if number:
            found.append((steps / products, steps / len(shapes), products / len(shapes)))
    ratios, step, product = zip(*found, strict=True)
    return {
        "step_over_floor": statistics.median(ratios),
        "step_ms": 1e3 * statistics.median(step),
        "floor_ms": 1e3 * statistics.median(product),
        "steps": len(shapes),
    }


def _steps_of(case: Case) -> float:
    """Returns the seconds that a generation spends in block steps."""
    running = dllm.stream(
        case.quick,
        [case.prompt],
        scheduler="fixed_quota",
        cache="dual",
        max_new_tokens=case.new_tokens,
        block_length=case.block,
        at_eos="ignore",
    )
    spent, last = 0.0, perf_counter()
    for event in running:
        now = perf_counter()
        spent += now - last if event.kind == "step" else 0.0
        last = now
    return spent


def of_overhead(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Returns the part of a decoding outside the model, by scheduler and cache."""
    rows = []
    for scheduler, cache in OVERHEAD:
        shares, milliseconds = [], []
        for number in range(repeats + 1):
            watched = Watched(case.quick)
            start = perf_counter()
            case.ours("overhead", cache, watched, scheduler)
            whole = perf_counter() - start - watched.noting
            inside = sum(watched.seconds)
            if number:
                shares.append(1 - inside / whole)
                milliseconds.append(1e3 * (whole - inside) / len(watched.seconds))
        rows.append(
            {
                "scheduler": scheduler,
                "cache": cache,
                "share": statistics.median(shares),
                "ms_per_pass": statistics.median(milliseconds),
            }
        )
    return rows


def of_generation(case: Case, repeats: int) -> dict[str, Any]:
    """Returns how much faster decoding is than the textbook loop, and whether tokens agree."""
    names = ("dual", "none", "naive dual", "naive none")
    works = (
        lambda: case.ours("dual", "dual"),
        lambda: case.ours("none", "none"),
        lambda: case.naive("naive dual", dual=True),
        lambda: case.naive("naive none", dual=False),
    )
    taken = dict(zip(names, rounds(works, repeats, case.model.device), strict=True))
    return {
        "over_naive_dual": ratio(taken["naive dual"], taken["dual"]),
        "over_naive_none": ratio(taken["naive none"], taken["dual"]),
        "none_over_naive_none": ratio(taken["naive none"], taken["none"]),
        "same_tokens_dual": case.tokens["dual"] == case.tokens["naive dual"],
        "same_tokens_none": case.tokens["none"] == case.tokens["naive none"],
        "different_tokens": len(set(case.tokens["dual"][len(case.prompt) :])),
        "seconds": {name: statistics.median(seconds) for name, seconds in taken.items()},
        "tokens_per_second": case.new_tokens / statistics.median(taken["dual"]),
    }


def main(
    shape: Annotated[str, typer.Option(help="One of benchmarks/shapes.py.")] = "50m",
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Slots.")] = 128,
    block: Annotated[int, typer.Option(help="Columns of a block.")] = 32,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 5,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32",
    against: Annotated[str, typer.Option(help="dtype of the textbook loop; the same.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    speed: Annotated[str, typer.Option(help='"packed", "fused+captured", ...; see speed_up.')] = "",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    overhead: Annotated[bool, typer.Option(help="Also by scheduler and cache.")] = True,
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Measures steps, overhead and generations of one shape."""
    torch.set_num_threads(threads)
    model = random_model(shape, getattr(torch, dtype), device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.spec.vocab_size - 2, (prompt,), generator=generator).tolist()
    quick = random_model(shape, getattr(torch, dtype), device)
    quick = dllm.speed_up(quick, *parse_ways(speed)) if speed else model
    textbook = random_model(shape, getattr(torch, against), device) if against else model
    case = Case(model, textbook, quick, ids, new_tokens, block)
    with torch.inference_mode():
        found: dict[str, Any] = {"step": of_steps(case, repeats)}
        found["kinds"] = of_kinds(case, repeats)
        found["generation"] = of_generation(case, max(repeats // 2, 1))
        found["overhead"] = of_overhead(case, max(repeats // 2, 1)) if overhead else []
    _report(f"{shape}, {dtype}, {threads} thread{'s' * (threads > 1)}", found)
    sizes = {
        "speed": speed,
        "against": against or dtype,
        "prompt": prompt,
        "new_tokens": new_tokens,
        "block": block,
    }
    write({"machine": machine(device), "shape": shape, "dtype": dtype, **sizes, **found}, output)


def _report(title: str, found: dict[str, Any]) -> None:
    console, table = Console(stderr=True), Table("", "", title=title)
    for part in ("step", "generation"):
        for name, value in found[part].items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            table.add_row(name.replace("_", " "), text)
    console.print(table)
    kinds = Table(*(name.replace("_", " ") for name in found["kinds"][0]))
    for row in found["kinds"]:
        kinds.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(kinds)
    if found["overhead"]:
        shares = Table("scheduler", "cache", "outside the model", "ms a pass")
        for row in found["overhead"]:
            share, spent = f"{row['share']:.1%}", f"{row['ms_per_pass']:.2f}"
            shares.add_row(row["scheduler"], row["cache"], share, spent)
        console.print(shares)


if __name__ == "__main__":
    typer.run(main)
