"""`dllm compare`: two runs on the same problems, with the test that fits that."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dllm.cli.options import JsonOption
from dllm.eval.compare.paired import Pairing, choose, label_in, pair
from dllm.eval.run.summary import Summary, record

_LEVEL = 0.05  # the usual one, for the wording alone


@dataclass(frozen=True)
class _Named:
    """Two runs side by side, and what they are called."""

    first: str
    second: str
    pairing: Pairing


def compare_runs(
    first: Annotated[Path, typer.Argument(help="Results of `dllm eval --output`.")],
    second: Annotated[
        Path | None, typer.Argument(help="The other results; the same file unless given.")
    ] = None,
    run_first: Annotated[
        str | None, typer.Option("--first", help="Which run of the first file: a name or label.")
    ] = None,
    run_second: Annotated[
        str | None, typer.Option("--second", help="Which run of the second file.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="List the problems that only one has right.")
    ] = False,
    as_json: JsonOption = False,
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
    named = _Named(label_in(results[0]), label_in(results[1]), pair(*results))
    if as_json:
        print(json.dumps(_values(named)))
    else:
        _report(named, show)


def _values(named: _Named) -> dict[str, Any]:
    pairing, counts = named.pairing, named.pairing.counts
    low, high = counts.interval
    return {
        **asdict(pairing),
        "first": {"label": named.first, **record(pairing.first)},
        "second": {"label": named.second, **record(pairing.second)},
        "difference": counts.difference,
        "difference_low": low,
        "difference_high": high,
        "exact_p": counts.exact_p,
        "chi_square": counts.chi_square,
        "chi_square_p": counts.chi_square_p,
        "speed": pairing.speed,
    }


def _report(named: _Named, show: bool) -> None:
    pairing, counts = named.pairing, named.pairing.counts
    console = Console(highlight=False)
    console.print(_table(named))
    low, high = counts.interval
    verdict = "can" if counts.exact_p >= _LEVEL else "is unlikely to"
    lines = [
        f"first less second: {100 * counts.difference:+.1f} points, 95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"only the first is right: {counts.only_first}; only the second: {counts.only_second}; "
        f"both: {counts.both}; neither: {counts.neither}",
        f"McNemar: exact p = {counts.exact_p:.3g}; chi-square {counts.chi_square:.2f}, "
        f"p = {counts.chi_square_p:.3g}: a difference like this {verdict} be chance",
        *_speed(pairing),
        *_notes(pairing),
    ]
    if show:
        lines += [f"only the first: {', '.join(pairing.wins) or 'none'}"]
        lines += [f"only the second: {', '.join(pairing.losses) or 'none'}"]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _table(named: _Named) -> Table:
    title = f"{named.pairing.counts.total} common problems"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("run", overflow="fold")
    for name in ("accuracy", "95 %", "tokens/\nforward", "tokens/\nsecond"):
        table.add_column(name, justify="right", no_wrap=True)
    pairing = named.pairing
    for place, label, summary in (
        ("first", named.first, pairing.first),
        ("second", named.second, pairing.second),
    ):
        table.add_row(place, Text(label), *_figures(summary))
    return table


def _figures(summary: Summary) -> list[str]:
    return [
        f"{summary.accuracy:.1%}",
        f"{100 * summary.accuracy_low:.0f}-{summary.accuracy_high:.0%}",
        f"{summary.tokens_per_forward:.2f}",
        f"{summary.tokens_per_second:.0f}",
    ]


def _speed(pairing: Pairing) -> list[str]:
    if pairing.speed is None:
        return []
    return [f"tokens per forward, second over first: {pairing.speed:.2f}"]


def _notes(pairing: Pairing) -> list[str]:
    notes = []
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
