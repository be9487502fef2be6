"""The pages that come from the code: those of docs/reference, docs/models.md, a guide's table.

python docs/generate.py            # writes them; `make docs` does that
python docs/generate.py --check    # names those that are not what the code says
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

# Its other half, and this tree with its tests, from wherever it is run.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grammar_methods
import hosted_families
import hosted_schedulers

from dllm.cli.methods import MARKER, escape, markdown_table, render, section
from dllm.cli.shown.catalogue import Method, find_methods
from dllm.eval.ablation.ablation import Ablation, Row
from dllm.eval.ablation.read import read_ablation, shipped

DOCS = Path(__file__).resolve().parent
REFERENCE = DOCS / "reference"
PUBLIC = {  # module -> modules whose exported names its page shows besides its own
    "dllm": ("dllm.models",),
    "dllm.schedulers": (),
    "dllm.cache": (),
    "dllm.constraints": (),
    "dllm.eval": ("dllm.eval.tasks",),
}
CONFIGURATION_KEYS = ("scheduler", "cache", "verifier")


def pages() -> dict[Path, str]:
    """Returns the text of each page with a generated part, by path."""
    methods = find_methods()
    parts = {
        "schedulers.md": render([method for method in methods if method.kind == "scheduler"]),
        "caches.md": cache_list([method for method in methods if method.kind == "cache"]),
        "configurations.md": configurations(read_ablation(path) for path in shipped().values()),
    }
    parts["grammars.md"] = grammar_methods.page()
    parts.update({f"api/{name}.md": api(name, more) for name, more in PUBLIC.items()})
    paths = {REFERENCE / name: part for name, part in parts.items()}
    paths[DOCS / "models.md"] = hosted_families.page()
    paths[DOCS / "guides" / "sglang.md"] = hosted_schedulers.page()
    return {path: _below_marker(path, part) for path, part in paths.items()}


def cache_list(methods: Sequence[Method]) -> str:
    """Returns a line for each cache and a section with its options, presets and source."""
    lines = [f"- [`{method.name}`](#{method.name}): {escape(method.rule)}" for method in methods]
    return "\n\n".join([MARKER, "\n".join(lines), *map(section, methods)]) + "\n"


def configurations(ablations: Iterable[Ablation]) -> str:
    """Returns a section for each ablation that comes with dllm: its rows beside what is known."""
    return "\n\n".join([MARKER, *map(_configuration, ablations)]) + "\n"


def _configuration(ablation: Ablation) -> str:
    head = ("row", "model", "task", "decoding", "new tokens", "published", "source")
    rows = markdown_table(head, map(_row, ablation.rows))
    notes = "\n".join(f"- {escape(note)}" for note in ablation.notes)
    parts = [f"## {ablation.name}", escape(ablation.about) + ".", notes, rows]
    return "\n\n".join(part for part in parts if part)


def _row(row: Row) -> tuple[str, ...]:
    decoding = [f"`{_short(row.given[key])}`" for key in CONFIGURATION_KEYS if key in row.given]
    figures, source = "", ""
    if row.published is not None:
        known = row.published.accuracy is not None
        figures = f"{row.published.accuracy}%" if known else f"not known: {row.published.because}"
        source = row.published.source if known else ""
    new_tokens = str(row.given.get("max_new_tokens", ""))
    cells = (row.name, f"`{row.model}`", row.task.text, ", ".join(decoding), new_tokens)
    return (*cells, escape(figures), escape(source))


def _short(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    options = ",".join(f"{key}={_short(it)}" for key, it in value.items() if key != "name")
    return f"{value['name']}:{options}" if options else str(value["name"])


def api(name: str, more: Iterable[str]) -> str:
    """Returns the page of a module: what it exports, which mkdocstrings fills in."""
    module = importlib.import_module(name)
    seen: set[int] = set()
    parts = [MARKER, f"# `{name}`", inspect.cleandoc(module.__doc__ or "")]
    parts += _entries(module, seen)
    for other in map(importlib.import_module, more):
        entries = list(_entries(other, seen))
        parts += [f"## Also in `{other.__name__}`", inspect.cleandoc(other.__doc__ or ""), *entries]
    return "\n\n".join(parts) + "\n"


def _entries(module: ModuleType, seen: set[int]) -> Iterator[str]:
    """Yields a directive for each exported name that has no page of its own."""
    for name in module.__all__:
        value = getattr(module, name)
        path = f"{module.__name__}.{name}"
        if path in PUBLIC:
            about = inspect.cleandoc(value.__doc__ or "")
            yield f"## `{path}`\n\n{about} See [its page]({path}.md)."
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        # A function may have the name of its module, which a path alone would name.
        hidden = not isinstance(value, ModuleType) and path in sys.modules
        where = f"{value.__module__}.{name}" if hidden else path
        yield f"::: {where}\n    options:\n      heading: {path}\n      toc_label: {name}"


def _below_marker(path: Path, part: str) -> str:
    """Returns a page with what stands by hand above the marker, and the part below."""
    written = path.read_text(encoding="utf-8").partition(MARKER)[0] if path.exists() else ""
    return written + part


def stale() -> list[Path]:
    """Returns the pages that are not what the code says."""
    return [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str]) -> int:
    """Writes the pages, or with --check returns 1 where one of them is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args(arguments).check:
        for path in stale():
            sys.stderr.write(f"{path} is not what the code says: run `make docs`\n")
        return 1 if stale() else 0
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
