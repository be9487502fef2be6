"""What figures were measured on, how a time is taken, and where records go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

import dllm
from dllm.eval.run.record import commit


def machine(device: torch.device | str) -> dict[str, Any]:
    """Returns a record of hardware, versions, commit and time."""
    device = torch.device(device)
    return {
        "device": _device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dllm": dllm.__version__,
        "commit": commit(),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def rounds(
    works: Sequence[Callable[[], object]],
    count: int,
    device: torch.device | str,
    clock: Callable[[], float] = perf_counter,
) -> list[list[float]]:
    """Returns seconds of each work in each round; all are done in turn in every round.

    A neighbour that slows the machine down for a while then slows all of them, and ratios within a
    round stay what they are. One further round before the first is not counted.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else _nothing
    taken: list[list[float]] = [[] for _ in works]
    for number in range(count + 1):
        for work, seconds in zip(works, taken, strict=True):
            wait()
            start = clock()
            work()
            wait()
            if number:
                seconds.append(clock() - start)
    return taken


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Returns the median over rounds of the ratio of two works' times."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def write(record: dict[str, Any], path: Path | None) -> None:
    """Writes a record as JSON, to stdout without a path."""
    text = json.dumps(record, indent=1)
    if path is None:
        print(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _nothing() -> None:
    return None


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).stem


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores"
