"""Every benchmark of speed and memory, one after the other; each writes a record of its own.

    python -m benchmarks

Takes about an hour on two CPU cores with the 50 M shape; `--quick` shows within a few minutes that
everything runs. A benchmark that fails is named at the end, and does not stop the others. Records
go into a new folder in bench/, named by the time, so that no run writes over another.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import dllm
from benchmarks.shapes import SHAPES, random_model

_FEW = ("--batches", "1,2", "--prompts", "32,64", "--answers", "64", "--repeats", "1")
_SHORT = ("--prompt", "32", "--new-tokens", "32", "--block", "16")
_FAST = "fused+packed"


def main(
    folder: Annotated[Path | None, typer.Option(help="Where records go; an empty one.")] = None,
    shape: Annotated[str, typer.Option(help="One of benchmarks/shapes.py.")] = "50m",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny network, few sizes.")] = False,
) -> None:
    """Runs all benchmarks."""
    shape = "tiny" if quick else shape
    if shape not in SHAPES:
        raise typer.BadParameter(f"--shape {shape}: known are {', '.join(SHAPES)}")
    folder = folder or Path("bench") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"--folder {folder} holds something: name a new or an empty one")
    console, failed = Console(stderr=True), []
    for name, file, options in jobs(shape, threads, quick):
        console.rule(f"{name} {' '.join(options)}")
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        command += ["--output", str(folder / f"{file}.json")]
        if name == "cost_curve":
            command += ["--plot", str(folder / f"{file}.png")]
        if subprocess.run(command, check=False).returncode:
            failed.append(file)
    console.rule()
    if failed:
        console.print(f"failed: {', '.join(failed)}; see above. The others are in {folder}")
        raise typer.Exit(1)
    console.print(f"records and plots are in {folder}")


def jobs(shape: str, threads: int, quick: bool) -> list[tuple[str, str, list[str]]]:
    """Returns module, name of the record and options of each benchmark."""
    few = list(_FEW) if quick else []
    if torch.cuda.is_available():
        gpu = ["--shape", "tiny"] if quick else []
        return [("gpu", "gpu", gpu), *_of_device(shape, ["--device", "cuda"], few)]
    on_cpu = ["--threads", str(threads)]
    found = _of_device(shape, on_cpu, few)
    made_up = ["--tokens", "2000", "--repeats", "1"] if quick else []
    found.append(("constraints", "constraints", made_up))
    steps = list(itertools.product(_dtypes(), (_FAST, f"{_FAST}+compiled")))
    for dtype, speed in steps[:: len(steps) - 1] if quick else steps:  # each value
        options = ["--shape", shape, "--dtype", dtype, "--speed", speed, *on_cpu]
        options += [*_SHORT, "--repeats", "1", "--no-overhead"] if quick else []
        found.append(("step", f"step_{shape}_{dtype}_{speed}", options))
    return found


def _of_device(shape: str, device: list[str], few: list[str]) -> list[tuple[str, str, list[str]]]:
    dtype = ["--dtype", "bfloat16"] if "cuda" in device else []
    speed = ["--speed", "fused+captured" if "cuda" in device else _FAST]
    common = ["--shape", shape, *dtype]
    no_threads = [] if "--threads" in device else device
    return [
        ("generation", f"generation_{shape}", [*common, *speed, *device, *few]),
        ("cost_curve", f"cost_curve_{shape}", [*common, *speed, *device, *few]),
        (
            "memory",
            f"memory_{shape}",
            [*common, *no_threads, *(["--prompt", "32", "--few"] if few else [])],
        ),
    ]


def _dtypes() -> list[str]:
    """Returns the dtypes whose products this CPU has."""
    try:
        dllm.speed_up(random_model("tiny", torch.bfloat16), "packed")
    except ValueError:
        return ["float32"]
    return ["float32", "bfloat16"]


if __name__ == "__main__":
    typer.run(main)
