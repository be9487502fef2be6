"""What `benchmarks/gpu.py` prints: each measurement at once, then a table of a shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

# What is aimed at on a GPU of the Hopper generation, of the shape of LLaDA-8B in bfloat16.
STEP, BATCH, DRAWN = 1.25, 12.0, 1.1


@dataclass(frozen=True)
class Goal:
    """A ratio, and what is aimed at."""

    way: str
    what: str
    ratio: float
    aim: float
    met: bool


def reached(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the goals of each way of a shape, as far as it ran at the smallest and largest batch.

    `lines` are those of its batch sizes.
    """
    few, many, goals = lines[0], lines[-1], []
    for way in few["ways"]:
        one, all_rows = few["ways"][way], many["ways"][way]
        if "out_of_memory" in one or "out_of_memory" in all_rows:
            continue
        step = one["ms"] / few["floor"]["weights_ms"]
        gain = all_rows["tokens_per_second"] / one["tokens_per_second"]
        drawn = one["tokens_per_second"] / one["drawn_tokens_per_second"]
        first, last = few["batch"], many["batch"]
        of_step = f"a step over the weights' read, batch {first}"
        of_batch = f"tokens/s, batch {last} over {first}"
        of_drawn = f"time of drawn tokens over the likeliest, batch {first}"
        goals += [
            Goal(way, of_step, step, STEP, step <= STEP),
            Goal(way, of_batch, gain, BATCH, gain >= BATCH),
            Goal(way, of_drawn, drawn, DRAWN, drawn <= DRAWN),
        ]
    return [asdict(goal) for goal in goals]


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
    goals = Table("way", "goal", "is", "aim", "met", title=f"{shape}, goals")
    for goal in reached(lines):
        ratio, aim = f"{goal['ratio']:.3g}", f"{goal['aim']:.3g}"
        goals.add_row(goal["way"], goal["what"], ratio, aim, "yes" if goal["met"] else "no")
    Console(stderr=True).print(goals)
