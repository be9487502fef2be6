"""What a generation takes of the memory, beside what was predicted.

    python -m benchmarks.memory --shape 50m

Each case runs in a process of its own: what it holds once the weights are there, and the most that
a generation takes beside that (on Linux the resident set, on a GPU the memory allocated). `store`
is what the K/V store holds, `predicted` the estimate that names a fitting batch where none was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dllm
from benchmarks.machine import machine, write
from benchmarks.shapes import random_model
from dllm.models.speed import parse_ways

CASES = (
    *(("", "dual", batch) for batch in (1, 4, 16, 32)),
    *(("", cache, 16) for cache in ("none", "prefix", "dkv")),
    *((speed, "dual", 16) for speed in ("fused", "packed", "fused+packed")),
)


def main(
    shape: Annotated[str, typer.Option(help="One of benchmarks/shapes.py.")] = "50m",
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 512,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    few: Annotated[bool, typer.Option("--few", help="Three of ten cases.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
    case: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measures the memory of one shape."""
    if case:
        speed, cache, batch = json.loads(case)
        size = (batch, prompt)
        print(json.dumps(of_case(shape, getattr(torch, dtype), device, (speed, cache, size))))
        return
    if not (device.startswith("cuda") or Path("/proc/self/clear_refs").exists()):
        raise typer.BadParameter("memory of a CPU is measured on Linux alone: take --device cuda")
    rows, console = [], Console(stderr=True)
    for speed, cache, batch in track(CASES[::4] if few else CASES, "cases", console=console):
        asked = json.dumps([speed, cache, batch])
        command = [sys.executable, "-m", "benchmarks.memory", "--shape", shape, "--case", asked]
        command += ["--prompt", str(prompt), "--dtype", dtype, "--device", device]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"speed": speed, "cache": cache, "batch": batch, **json.loads(done.stdout)})
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    sizes = {"shape": shape, "dtype": dtype, "prompt": prompt, "new_tokens": 64, "block": 32}
    write({"machine": machine(device), **sizes, "cases": rows}, output)


def of_case(
    shape: str, dtype: torch.dtype, device: str, asked: tuple[str, str, tuple[int, int]]
) -> dict[str, float]:
    """Returns mebibytes of the weights, and of what a generation takes beside them."""
    speed, cache, size = asked
    before = _held(device)
    model = random_model(shape, dtype, device)
    model = dllm.speed_up(model, *parse_ways(speed)) if speed else model
    weights = _held(device)
    _forget_most(device)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, model.spec.vocab_size - 2, size, generator=generator).tolist()
    out = dllm.generate(
        model,
        prompts,
        scheduler="fixed_quota:steps=8",
        cache=cache,
        max_new_tokens=64,
        block_length=32,
        at_eos="ignore",
    )
    columns = size[1] + 64 + 32  # with the spare ones
    a_row = model.cost.row_bytes(columns if cache != "none" else 0, size[1] + 64, 32)
    return {
        "weights_mib": (weights - before) / 2**20,
        "generation_mib": (_most(device) - weights) / 2**20,
        "store_mib": out.metrics.store_bytes / 2**20,
        "predicted_mib": size[0] * a_row / 2**20,
    }


def _held(device: str) -> int:
    """Returns the bytes that this process holds now."""
    return int(torch.cuda.memory_allocated()) if device.startswith("cuda") else _told("VmRSS")


def _most(device: str) -> int:
    """Returns the most bytes that it has held since `_forget_most`."""
    return int(torch.cuda.max_memory_allocated()) if device.startswith("cuda") else _told("VmHWM")


def _forget_most(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _told(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    typer.run(main)
