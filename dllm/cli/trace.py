"""`dllm trace`: replays what a generation wrote step by step, in the terminal or as a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dllm.cli.keys import HAS_KEYS
from dllm.cli.options import JsonOption
from dllm.cli.paths import check_writable
from dllm.cli.trace_colours import COLOURS
from dllm.cli.trace_keys import replay
from dllm.cli.trace_rows import frames_of, print_rows
from dllm.cli.trace_view import View, print_steps
from dllm.registry import nearest
from dllm.trace.file import Held, read_held
from dllm.trace.page import page
from dllm.trace.record import TraceRecord


def trace(
    file: Annotated[Path, typer.Argument(help="From `dllm generate --trace` or `eval --trace`.")],
    id_: Annotated[
        str | None, typer.Option("--id", help="The problem with this id; --list has them.")
    ] = None,
    row: Annotated[int | None, typer.Option(help="The row with this number, from 1.")] = None,
    list_rows: Annotated[bool, typer.Option("--list", help="List what the file holds.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page for a browser; all rows unless one is named.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Print only the canvas after so many steps.")
    ] = None,
    colour: Annotated[
        str, typer.Option("--colour", "--color", help="step: of the commit; or confidence.")
    ] = "step",
    as_json: JsonOption = False,
) -> None:
    """Replays a generation: which tokens each step committed, edited or masked again.

    dllm generate "tom has 53 pens. tom loses 3. how many pens does tom have?" --trace rows.jsonl

    dllm trace rows.jsonl

    dllm trace rows.jsonl --html replay.html
    """
    if colour not in COLOURS:
        raise ValueError(f"colour={colour!r}: {nearest(colour, COLOURS)}")
    if html is not None and (html.suffix not in (".html", ".htm") or step is not None or as_json):
        raise ValueError(f"html={html} must end in .html, and goes without --step and --json")
    check_writable(html, "--html", mark='<body class="trace-page">')
    held = read_held(file)
    if list_rows:
        print_rows(held, as_json)
        return
    chosen = _chosen(held, id_, row)
    if html is not None:
        _write(html, [one.record for one in chosen], file.name)
        return
    record = _single(chosen, held).record
    if step is not None and not 0 <= step <= record.num_steps:
        raise ValueError(f"step={step} must be between 0 and {record.num_steps}, the row's steps")
    if as_json:
        print(json.dumps(frames_of(record, step)))
        return
    _show(View(record, colour), step)


def _show(view: View, step: int | None) -> None:
    console = Console(highlight=False)
    view = View(view.record, view.colour, system=console.color_system)
    if step is not None:
        print_steps(console, view, range(step, step + 1))
    elif HAS_KEYS and console.is_terminal and sys.stdin.isatty() and not console.is_dumb_terminal:
        replay(console, view)
    else:
        print_steps(console, view, range(view.record.num_steps + 1))


def _chosen(held: Sequence[Held], id_: str | None, row: int | None) -> list[Held]:
    """Returns the rows that the options name; all with a trace if they name none."""
    if id_ is not None and row is not None:
        raise ValueError("give --id or --row, not both")
    if row is not None:
        if not 1 <= row <= len(held):
            raise ValueError(f"row={row} must be between 1 and {len(held)}; --list lists all")
        return [held[row - 1]]
    if id_ is None:
        return [one for one in held if one.content is not None]
    found = [one for one in held if one.id == id_]
    if not found:
        near = get_close_matches(id_, [one.id for one in held if one.id], n=3, cutoff=0)
        like = f"ids most like it: {', '.join(near)}" if near else "no row has an id"
        raise ValueError(f"no row has id={id_!r}; {like}; --list lists all rows")
    return found


def _single(chosen: Sequence[Held], held: Sequence[Held]) -> Held:
    """Returns the row to show; says which one if there are more."""
    if len({one.id for one in chosen if one.id}) == 1 and len(chosen) > 1:
        rows = ", ".join(str(one.number) for one in chosen)
        raise ValueError(f"id={chosen[0].id!r} is in {len(chosen)} runs: name one as --row {rows}")
    if len(chosen) > 1:
        Console(stderr=True, highlight=False).print(
            f"row {chosen[0].number} of {len(held)}; --row or --id name another, --list lists all"
        )
    return chosen[0]


def _write(path: Path, records: Sequence[TraceRecord], name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(records, f"Replay of {name}"), encoding="utf-8")
    rows = f"{len(records)} row{'' if len(records) == 1 else 's'}"
    said = f"written: {path} ({rows}); open it in a browser"
    Console(stderr=True, highlight=False).print(said, markup=False, soft_wrap=True)
