"""The generated part of docs/reference/schedulers.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dllm.cli.catalogue import Method, Option

MARKER = "<!-- generated: `make docs` writes what follows from the code -->"


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
    path.write_text(f"{written}{part}", encoding="utf-8")


def render(methods: Sequence[Method]) -> str:
    """Returns the marker, a table of all methods and a section for each of them."""
    head = ("scheduler", "what it does", "reads", "traits")
    rows = [
        (
            f"[`{method.name}`](#{method.name})",
            escape(method.rule),
            escape(method.statistic),
            "; ".join(trait.brief for trait in method.traits),
        )
        for method in methods
    ]
    parts = [MARKER, "## All of them", _table(head, rows), *map(section, methods)]
    return "\n\n".join(parts) + "\n"


def section(method: Method) -> str:
    """Returns what there is to know of one method, under its name."""
    parts = [f"## {method.name}", escape(method.text)]
    facts = [("Reads", method.statistic), ("Traits", "; ".join(t.full for t in method.traits))]
    parts.append("\n".join(f"- {name}: {escape(text)}" for name, text in facts if text))
    if method.options:
        rows = map(_option, method.options)
        parts.append(_table(("option", "values", "default", "meaning"), rows))
    if method.presets:
        names = [(f"`{method.name}@{name}`", f"`{it}`") for name, it in method.presets.items()]
        parts.append(_table(("preset", "options"), names))
    parts.append(f"Source: {_linked(escape(method.source))}.")
    if method.published:
        parts.append(f"Published: {_linked(escape(method.published))}.")
    return "\n\n".join(part for part in parts if part)


def _option(option: Option) -> tuple[str, str, str, str]:
    default = f"`{option.default}`" if option.default else "none"
    return f"`{option.name}`", option.type, default, escape(option.meaning)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
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
