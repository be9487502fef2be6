"""What `benchmarks/gpu.py` prints: each measurement at once, then a table of a shape."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def say(shape: str, way: str, line: dict[str, Any]) -> None:
    """Prints one measurement as soon as it is there."""
    row, least = line["ways"][way], line["floor"]["ms"]
    said = row.get("out_of_memory") or f"{row['ms']:.3f} ms a step, floor {least:.3f} ms"
    Console(stderr=True).print(f"{shape}, {way}, batch {line['batch']}: {said}", highlight=False)


def show(shape: str, lines: list[dict[str, Any]]) -> None:
    """Prints the table of a shape: a line for each way and batch size."""
    columns = ("batch", "way", "ms a step", "over floor", "tokens/s", "peak GiB")
    table = Table(*columns, title=shape)
    for line in lines:
        for way, row in line["ways"].items():
            if "out_of_memory" in row:
                table.add_row(str(line["batch"]), way, "out of memory")
                continue
            numbers = (row["ms"], row["ms"] / line["floor"]["ms"], row["tokens_per_second"])
            told = [f"{number:.3g}" for number in (*numbers, row["peak_bytes"] / 2**30)]
            label = way if row["ran_eager"] is None else f"{way} (ran eager)"
            table.add_row(str(line["batch"]), label, *told)
        spent = ", ".join(f"{way} {ms:.3f}" for way, ms in line["statistics_ms"].items())
        bound = f"floor, by {line['floor']['bound']}"
        table.add_row(str(line["batch"]), bound, f"{line['floor']['ms']:.3g}")
        table.add_row(str(line["batch"]), f"statistics, ms: {spent}")
        parts = ", ".join(f"{part} {ms:.3f}" for part, ms in line["between_ms"].items())
        table.add_row(str(line["batch"]), f"in a layer, ms: {parts}", end_section=True)
    Console(stderr=True).print(table)
