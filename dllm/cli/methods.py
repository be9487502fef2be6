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

from dllm.cli import options
from dllm.cli.shown import Terminal
from dllm.cli.shown.catalogue import Method, Option, find_methods

MARKER = "<!-- generated: `make docs` writes what follows from the code -->"


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, explained in full.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the schedulers as Markdown.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            help="With --markdown: the page whose generated part it is.", show_default="none"
        ),
    ] = None,
    as_json: options.Json = False,
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
            _explain(Terminal(), method)
    else:
        _list(Terminal(), found)


def _list(console: Console, found: Iterable[Method]) -> None:
    """Prints the rule of each method, and its options below."""
    for kind, group in groupby(found, key=lambda method: method.kind):
        rows = []
        for method in group:
            rows.append((method.name, method.rule))
            listed = ", ".join(f"{o.name}={o.default}" for o in method.options)
            rows += [("", listed)] if listed else []
        console.print(Text(f"{kind}s", "bold underline"), _grid(rows), "")
    console.print("dllm methods NAME explains one: its options, presets and source.")


def _explain(console: Console, method: Method) -> None:
    """Prints all there is to know of a method."""
    console.print(Text.assemble((method.name, "bold"), f" ({method.kind})\n"))
    for paragraph in method.text.split("\n\n"):
        filled = re.sub(r"\n(?! )", " ", paragraph)  # the console breaks it; indented lines stay
        console.print(Text(f"{filled}\n"))
    fields = [(o.name, o.default, _about(o)) for o in method.options]
    presets = [(f"{method.name}@{preset}", text) for preset, text in method.presets.items()]
    for title, rows in (("options", fields), ("presets", presets)):
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


# The generated part of docs/reference/schedulers.md.


def rewrite(path: Path, part: str) -> None:
    """Replaces what follows the marker in a page; raises ValueError if there is no marker."""
    if not path.is_file():
        raise ValueError(
            f"--into {path}: no such file: it must be a page with the line {MARKER!r}, after which "
            "is written; without --into the Markdown is printed"
        )
    try:
        page = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from None
    written, marker, _ = page.partition(MARKER)
    if not marker:
        raise ValueError(f"{path} has no line {MARKER!r} after which to write")
    with options.naming(path):
        path.write_text(f"{written}{part}", encoding="utf-8")


def render(methods: Sequence[Method]) -> str:
    """Returns the marker, a table of all methods and a section for each of them."""
    head, rows = ("scheduler", "what it does", "reads", "traits"), []
    for method in methods:
        link, traits = f"[`{method.name}`](#{method.name})", (t.brief for t in method.traits)
        rows.append((link, escape(method.rule), escape(method.statistic), "; ".join(traits)))
    parts = [MARKER, "## All of them", markdown_table(head, rows), *map(section, methods)]
    return "\n\n".join(parts) + "\n"


def section(method: Method) -> str:
    """Returns what there is to know of one method, under its name."""
    parts = [f"## {method.name}", escape(method.text)]
    facts = [("Reads", method.statistic), ("Traits", "; ".join(t.full for t in method.traits))]
    parts.append("\n".join(f"- {name}: {escape(text)}" for name, text in facts if text))
    if method.options:
        rows = map(_option_cells, method.options)
        parts.append(markdown_table(("option", "values", "default", "meaning"), rows))
    if method.presets:
        names = [(f"`{method.name}@{name}`", f"`{it}`") for name, it in method.presets.items()]
        parts.append(markdown_table(("preset", "options"), names))
    parts.append(f"Source: {_linked(escape(method.source))}.")
    if method.published:
        parts.append(f"Published: {_linked(escape(method.published))}.")
    return "\n\n".join(part for part in parts if part)


def _option_cells(option: Option) -> tuple[str, str, str, str]:
    default = f"`{option.default}`" if option.default else "none"
    return f"`{option.name}`", option.type, default, escape(option.meaning)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown, with the bars inside of cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def escape(text: str) -> str:
    """Returns text in which Markdown finds nothing but the code between backticks."""
    pieces = re.split(r"(`+[^`]*`+)", text)
    for index in range(0, len(pieces), 2):
        plain = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", pieces[index])
        plain = re.sub(r"(?<!\w)_|_(?!\w)|(?<! )\*|\*(?! )", r"\\\g<0>", plain)
        pieces[index] = plain.replace("](", r"\](")
    return "".join(pieces)


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
