"""Options that benchmarks over lengths have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ShapeName = Annotated[str, typer.Option(help="One of benchmarks/shapes.py.")]
Batches = Annotated[str, typer.Option(help="Rows, separated by commas.")]
Prompts = Annotated[str, typer.Option(help="Tokens of a prompt.")]
Answers = Annotated[str, typer.Option(help="Slots of an answer.")]
Block = Annotated[int, typer.Option(help="Columns of a block.")]
Repeats = Annotated[int, typer.Option(help="Rounds.")]
Speed = Annotated[str, typer.Option(help='"packed", "fused+captured", ...')]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Output = Annotated[Path | None, typer.Option(help="JSON.")]
