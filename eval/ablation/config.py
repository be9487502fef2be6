"""Reads an ablation from YAML; every error names the file and the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dllm.eval.ablation.ablation import Ablation, Row, unique
from dllm.eval.ablation.grid import combinations
from dllm.eval.ablation.row import OWN, SETTINGS, Written, mapping
from dllm.eval.report.schedulers_list import ALL
from dllm.registry import nearest

CONFIGS = ALL.parent
_TOP = ("about", "notes", "common", "grid", "exclude", "settings", "limit")


def shipped() -> dict[str, Path]:
    """Returns the ablations that come with the package, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml")) if path != ALL}


def find_config(name: str) -> Path:
    """Returns the file of that path, or the shipped one of that name."""
    path, known = Path(name), shipped()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    if path.is_dir():
        raise ValueError(f"{name} is a folder: name a YAML file, or one of {', '.join(known)}")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ValueError(
            f"no such configuration: {name}; `dllm ablate --list` lists those that come with dllm"
        )
    raise ValueError(f"no configuration {name!r}: {nearest(name, known)}; or give a YAML file")


def read_ablation(path: Path) -> Ablation:
    """Returns the ablation of a file.

    Raises ValueError that names the file and the key for whatever cannot be understood.
    """
    content = _load(path)
    try:
        return _ablation(path.stem, content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _load(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None


def _ablation(name: str, content: Any) -> Ablation:
    top = mapping(content, "an ablation", _TOP)
    about, notes, limit = top.get("about"), top.get("notes") or [], top.get("limit")
    if not isinstance(about, str) or "\n" in about.strip():
        raise ValueError(f"about={about!r} must be one line of text")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("notes must be a list of texts")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit={limit!r} must be at least 1")
    rows = _rows(top)
    twice = unique([row.name for row in rows])
    if twice is not None:
        raise ValueError(f"two rows are called {twice!r}: give one of them another 'name'")
    return Ablation(name, about.strip(), tuple(rows), tuple(notes), limit)


def _rows(top: Mapping[str, Any]) -> list[Row]:
    common = mapping(top.get("common") or {}, "common", (*OWN[1:], *SETTINGS))
    grid = mapping(top.get("grid") or {}, "grid", (*OWN[1:-3], *SETTINGS))
    listed, exclude = _list(top, "settings"), _list(top, "exclude")
    if exclude and not grid:
        raise ValueError("exclude: there is no grid to take anything from")
    for number, item in enumerate(exclude, start=1):
        mapping(item, f"exclude item {number}", tuple(grid))
    written: list[Written] = []
    for one in combinations(grid, exclude) if grid else []:
        written.append(Written(f"grid: {one['name']}", {**common, **one}))
    for number, item in enumerate(listed, start=1):
        where = f"settings item {number}"
        own = mapping(item, where, (*OWN, *SETTINGS))
        if "name" not in own:
            raise ValueError(f"{where} needs a 'name'")
        written.append(Written(f"{where} ({own['name']})", {**common, **own}))
    if not written:
        raise ValueError("there is nothing to run: write a grid or a list of settings")
    return [one.row() for one in written]


def _list(top: Mapping[str, Any], key: str) -> list[Any]:
    given = top.get(key) or []
    if not isinstance(given, list):
        raise ValueError(f"{key} must be a list, not {given!r}")
    return given
