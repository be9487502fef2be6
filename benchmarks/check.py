"""Compares operation counts and speed ratios with the committed ones.

    python -m benchmarks.check            (make bench-check)
    python -m benchmarks.check --renew    (make bench-check ARGS=--renew)

Counts (operations in and around the model, passes, host waits) must be the same to one; passes and
waits under any torch, operations under the one of the record. Ratios, of the 50 M shape with
`fused+packed` on one thread, may be worse by `TOLERANCE`, and are judged on a machine like that of
the record only. A change that is meant is written with `--renew` and committed:
benchmarks/results/check.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import dllm
from benchmarks.counts import COUNTED, count
from benchmarks.machine import machine, write
from benchmarks.shapes import random_model
from benchmarks.step import Case, of_generation, of_overhead, of_steps
from dllm.reading import parse_json

RECORD = Path(__file__).with_name("results") / "check.json"
TOLERANCE = 0.2
MORE_IS_BETTER = ("times the textbook loop, same dual cache",)
_EXACT = ("forwards", "waits")  # whatever torch does inside its own functions


@dataclass(frozen=True)
class Finding:
    """One number beside the committed one."""

    what: str
    committed: float | int | None  # None: not in the record
    now: float | int
    judged: bool
    good: bool

    @property
    def verdict(self) -> str:
        """What is printed of it."""
        if not self.judged:
            return "not judged"
        return "good" if self.good else "DIFFERS"


def counts() -> dict[str, dict[str, int]]:
    """Returns the counts of all combinations."""
    return {
        f"{scheduler}, {cache}": count(scheduler, cache).record() for scheduler, cache in COUNTED
    }


def ratios(shape: str, repeats: int) -> dict[str, float]:
    """Returns the ratios of a shape, of medians over rounds in which all take turns."""
    torch.set_num_threads(1)
    model = random_model(shape, torch.float32)
    quick = dllm.speed_up(random_model(shape, torch.float32), "fused", "packed")
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, model.spec.vocab_size - 2, (128,), generator=generator).tolist()
    case = Case(model, model, quick, prompt, new_tokens=128, block=32)
    with torch.inference_mode():
        steps, generation = of_steps(case, repeats), of_generation(case, repeats)
        outside = of_overhead(case, repeats)
    found = {"a block step over its products": steps["step_over_floor"]}
    found[MORE_IS_BETTER[0]] = generation["over_naive_dual"]
    for row in outside:
        found[f"outside the model: {row['scheduler']}, {row['cache']}"] = row["share"]
    return found


def compare(committed: dict[str, Any], now: dict[str, Any]) -> list[Finding]:
    """Returns every number of this run beside that of the record."""
    findings = []
    same_torch = committed["machine"]["torch"] == now["machine"]["torch"]
    for case, numbers in now["counts"].items():
        for name, value in numbers.items():
            before = committed["counts"].get(case, {}).get(name)
            judged = same_torch or name in _EXACT
            findings.append(Finding(f"{case}: {name}", before, value, judged, before == value))
    same_machine = committed["machine"]["device"] == now["machine"]["device"]
    for name, value in now.get("ratios", {}).items():
        before = committed["ratios"].get(name)
        good = before is not None and _near(name, before, value)
        findings.append(Finding(name, before, value, same_machine, good))
    return findings


def _near(name: str, before: float, value: float) -> bool:
    if name in MORE_IS_BETTER:
        return value >= before * (1 - TOLERANCE)
    return value <= before * (1 + TOLERANCE)


def main(
    renew: Annotated[bool, typer.Option("--renew", help="Write the record anew.")] = False,
    only_counts: Annotated[bool, typer.Option("--counts", help="Without ratios: seconds.")] = False,
    shape: Annotated[str, typer.Option(help="Of the ratios; see benchmarks/shapes.py.")] = "50m",
    repeats: Annotated[int, typer.Option(help="Rounds.", min=1, max=1000)] = 3,
    record: Annotated[Path, typer.Option(help="The committed record.")] = RECORD,
) -> None:
    """Compares this run with the record, or writes it."""
    if renew and only_counts:
        raise typer.BadParameter("--renew writes ratios too: leave --counts out")
    now: dict[str, Any] = {"machine": machine("cpu"), "counts": counts()}
    if not only_counts:
        now["ratios"] = ratios(shape, repeats)
    if renew:
        write(now, record)
        print(f"written: {record}; commit it with the change that it is of")
        return
    findings = compare(parse_json(record.read_text(encoding="utf-8"), record), now)
    _report(findings)
    if any(one.judged and not one.good for one in findings):
        raise typer.Exit(1)


def _report(findings: list[Finding]) -> None:
    table = Table("", "committed", "now", "verdict")
    shown = [one for one in findings if not (one.judged and one.good and isinstance(one.now, int))]
    for one in shown:
        table.add_row(one.what, _text(one.committed), _text(one.now), one.verdict)
    if shown:
        Console().print(table)
    worse = sum(one.judged and not one.good for one in findings)
    judged = sum(one.judged for one in findings)
    if not worse:
        print(f"as committed: {judged} of {len(findings)} numbers were judged")
        return
    print(
        f"{worse} of {judged} numbers differ. Mend it, or, if it is meant, write the record anew:"
    )
    print("  make bench-check ARGS=--renew")


def _text(value: float | int | None) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    typer.run(main)
