"""`dllm compare`: two runs on the same problems, with the test that fits that."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from dllm.cli import options
from dllm.cli.shown import Terminal
from dllm.cli.shown.measured import accuracy_cells, empty_table
from dllm.eval.compare.paired import Pairing, choose, label_in, pair
from dllm.eval.run.summary import record

_LEVEL = 0.05  # the usual one, for the wording alone


def compare(
    first: Annotated[Path, Argument(help="Results of `dllm eval --output`.")],
    second: Annotated[
        Path | None, Argument(help="The other results; the same file unless given.")
    ] = None,
    run_first: Annotated[
        str | None,
        Option(
            "--first",
            help="Which run of the first file: a name or label.",
            show_default="its only one",
        ),
    ] = None,
    run_second: Annotated[
        str | None,
        Option("--second", help="Which run of the second file.", show_default="its only one"),
    ] = None,
    show: Annotated[
        bool, Option("--show", help="List the problems that only one has right.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compares two runs problem by problem (McNemar's test) on those that both have answered.

    dllm compare slow.jsonl fast.jsonl

    dllm compare rows.jsonl --first fixed_quota --second threshold --show
    """
    other = second or first
    results = choose(first, run_first, "--first"), choose(other, run_second, "--second")
    if other == first and results[0] == results[1]:
        raise ValueError(
            f"--first {run_first!r} and --second {run_second!r} are the same run of {first}"
        )
    labels, pairing = (label_in(results[0]), label_in(results[1])), pair(*results)
    if as_json:
        print(json.dumps(_values(labels, pairing)))
    else:
        _report(labels, pairing, show)


def _values(labels: tuple[str, str], pairing: Pairing) -> dict[str, Any]:
    counts = pairing.counts
    low, high = counts.interval
    return {
        **asdict(pairing),
        "first": {"label": labels[0], **record(pairing.first)},
        "second": {"label": labels[1], **record(pairing.second)},
        "difference": counts.difference,
        "difference_low": low,
        "difference_high": high,
        "exact_p": counts.exact_p,
        "chi_square": counts.chi_square,
        "chi_square_p": counts.chi_square_p,
        "speed": pairing.speed,
    }


def _report(labels: tuple[str, str], pairing: Pairing, show: bool) -> None:
    console, counts = Terminal(), pairing.counts
    console.print_table(_table(labels, pairing))
    low, high = counts.interval
    verdict = "can" if counts.exact_p >= _LEVEL else "is unlikely to"
    lines = [
        f"first less second: {100 * counts.difference:+.1f} points, 95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"only the first is right: {counts.only_first}; only the second: {counts.only_second}; "
        f"both: {counts.both}; neither: {counts.neither}",
        f"McNemar: exact p = {counts.exact_p:.3g}; chi-square {counts.chi_square:.2f}, "
        f"p = {counts.chi_square_p:.3g}: a difference like this {verdict} be chance",
        *_notes(pairing),
    ]
    if show:
        lines += [f"only the first: {', '.join(pairing.wins) or 'none'}"]
        lines += [f"only the second: {', '.join(pairing.losses) or 'none'}"]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _table(labels: tuple[str, str], pairing: Pairing) -> Table:
    table = empty_table(f"{pairing.counts.total} common problems")
    table.add_column("")
    table.add_column("run", overflow="fold")
    for name in ("accuracy", "95 %", "tokens/\nforward", "tokens/\nsecond"):
        table.add_column(name, justify="right")
    summaries = (pairing.first, pairing.second)
    for name, label, summary in zip(("first", "second"), labels, summaries, strict=True):
        speeds = f"{summary.tokens_per_forward:.2f}", f"{summary.tokens_per_second:.0f}"
        table.add_row(name, Text(label), *accuracy_cells(summary), *speeds)
    return table


def _notes(pairing: Pairing) -> list[str]:
    notes = []
    if pairing.speed is not None:
        notes.append(f"tokens per forward, second over first: {pairing.speed:.2f}")
    if pairing.left_out_first or pairing.left_out_second:
        notes.append(
            f"left out, since not judged in both: {pairing.left_out_first} problems of the first, "
            f"{pairing.left_out_second} of the second"
        )
    if pairing.other_prompts:
        notes.append(f"{pairing.other_prompts} of the problems were asked in other words")
    if pairing.samples:
        notes.append("of several samples of a problem only the first counts")
    return notes
