"""CPU seconds from the start of a program to its first use: help, import, load, a generation.

    python -m benchmarks.start

Every program runs in a process of its own, all in turn in every round. What counts is the CPU time
of the process and its children, user and system, so that a busy disk or neighbour says little.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.machine import machine, write

_USED = "import dllm; dllm.load, dllm.generate"
_TOKENIZER = "from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer"
_PROMPT = "tom has 53 pens. tom loses 3. how many pens does tom have?"
_ASKED = {"_DLLM_COMPLETE": "complete_bash", "COMP_WORDS": "dllm chat --m", "COMP_CWORD": "2"}
_COMPLETED = f"""
import os, sys
os.environ.update({_ASKED})
sys.argv = ["dllm"]
from dllm.cli import main
main()
"""
PROGRAMS = {
    "python": ["-c", ""],
    "import torch": ["-c", "import torch"],
    "import torch, transformers": ["-c", "import torch, transformers"],
    "dllm --help": ["-m", "dllm", "--help"],
    "dllm generate --help": ["-m", "dllm", "generate", "--help"],
    "dllm eval --help": ["-m", "dllm", "eval", "--help"],
    "dllm chat, completed": ["-c", _COMPLETED],
    "import dllm": ["-c", "import dllm"],
    "import dllm, names used": ["-c", _USED],
    "imports of load": ["-c", f"{_USED}; {_TOKENIZER}"],
    "load tiny": ["-c", f"{_USED}; {_TOKENIZER}; dllm.load('tiny')"],
    "dllm generate": ["-m", "dllm", "generate", _PROMPT],
}
# What, beside what, and how many seconds more it may take.
GOALS = (
    ("dllm --help", "", 0.7),
    ("dllm generate --help", "dllm --help", 0.15),
    ("dllm eval --help", "dllm --help", 0.15),
    ("dllm chat, completed", "dllm --help", 0.15),
    ("import dllm", "import torch", 1.0),
    ("import dllm, names used", "import torch", 1.0),
    ("import dllm, names used", "import torch, transformers", 0.2),
    ("load tiny", "imports of load", 0.15),
    ("dllm generate", "import torch, transformers", 1.5),
)


def main(
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1, max=1000)] = 7,
    output: Annotated[Path | None, typer.Option(help="JSON.")] = None,
) -> None:
    """Measures every program and compares them with the goals."""
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(repeats):
        for name, words in PROGRAMS.items():
            taken[name].append(cpu_seconds(words))
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    spread = {name: [min(seconds), max(seconds)] for name, seconds in taken.items()}
    record = {
        "machine": machine("cpu"),
        "seconds": _rounded(middle),
        "least and most": {name: [round(one, 3) for one in both] for name, both in spread.items()},
        "goals": [_reached(middle, *goal) for goal in GOALS],
    }
    write(record, output)


def cpu_seconds(words: list[str]) -> float:
    """Returns the CPU time of a Python program; raises CalledProcessError where it fails."""
    before = _of_children()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reached(middle: dict[str, float], what: str, beside: str, most: float) -> dict[str, Any]:
    more = middle[what] - (middle[beside] if beside else 0.0)
    named = {"what": what, "beyond": beside or None, "seconds": round(more, 3), "goal": most}
    return {**named, "reached": more <= most}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(one, 3) for name, one in seconds.items()}


if __name__ == "__main__":
    typer.run(main)
