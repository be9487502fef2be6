"""`dllm methods`: what exists, with options and sources, read off the code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dllm.cli.catalogue import Method, Option, find_methods
from dllm.cli.markdown import render, rewrite
from dllm.cli.options import JsonOption


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, explained in full.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the schedulers as Markdown.")
    ] = False,
    into: Annotated[
        Path | None, typer.Option(help="With --markdown: the page whose generated part it is.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Lists schedulers, caches and tasks.

    dllm methods threshold
    """
    found = find_methods(name)
    if markdown or into is not None:
        if name is not None or as_json:
            raise ValueError("--markdown is about all schedulers: leave out the name and --json")
        part = render([method for method in found if method.kind == "scheduler"])
        if into is not None:
            rewrite(into, part)
        else:
            print(part, end="")
    elif as_json:
        print(json.dumps([asdict(method) for method in found]))
    elif name is not None:
        for method in found:
            _explain(Console(highlight=False), method)
    else:
        _list(Console(highlight=False), found)


def _list(console: Console, found: Iterable[Method]) -> None:
    """Prints the rule of each method, and its options below."""
    for kind, group in groupby(found, key=lambda method: method.kind):
        rows = []
        for method in group:
            rows.append((method.name, method.rule))
            options = ", ".join(f"{o.name}={o.default}" for o in method.options)
            rows += [("", options)] if options else []
        console.print(Text(f"{kind}s", "bold underline"), _grid(rows), "")
    console.print("dllm methods NAME explains one: its options, presets and source.")


def _explain(console: Console, method: Method) -> None:
    """Prints all there is to know of a method."""
    console.print(Text.assemble((method.name, "bold"), f" ({method.kind})\n"))
    for paragraph in method.text.split("\n\n"):
        console.print(Text(f"{_filled(paragraph)}\n"))
    options = [(o.name, o.default, _about(o)) for o in method.options]
    presets = [(f"{method.name}@{preset}", text) for preset, text in method.presets.items()]
    for title, rows in (("options", options), ("presets", presets)):
        if rows:
            console.print(Text(title, "bold"))
            console.print(Padding(_grid(rows), (0, 0, 1, 2)))
    facts = {
        "reads": method.statistic,
        "traits": "; ".join(trait.full for trait in method.traits),
        "source": method.source,
        "published": method.published,
    }
    console.print(_grid([(name, text) for name, text in facts.items() if text]))
    console.print()


def _about(option: Option) -> str:
    kind = option.type.replace("`", "")
    return f"{kind}; {option.meaning}" if option.meaning else kind


def _grid(rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table without lines whose first column is as wide as its names."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _filled(paragraph: str) -> str:
    """Returns a paragraph as one line that the console may break; indented lines stay."""
    return re.sub(r"\n(?! )", " ", paragraph)
