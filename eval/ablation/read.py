"""Reads ablations, and lists of schedulers, from YAML; errors name the file and the key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dllm import schedulers
from dllm.aliases import ALIASES, SCHEDULER_OPTIONS
from dllm.constraints.written import read_setting
from dllm.eval.ablation.ablation import (
    Ablation,
    Published,
    Row,
    TaskChoice,
    combinations,
    method_of,
    text_of,
)
from dllm.options import Count, checked, shown
from dllm.reading import read_yaml
from dllm.registry import nearest
from dllm.settings import Settings

CONFIGS = Path(__file__).parent / "configs"
ALL = CONFIGS / "schedulers.yaml"  # of `dllm eval --schedulers all`
_TOP = ("about", "notes", "common", "grid", "exclude", "settings", "limit")
# Keys of a row that are no settings of a generation.
_OWN = (
    *(
        "name",
        "method",
        "model",
        "dtype",
        "revision",
        "adapter",
        "task",
        "batch_size",
        "constrained",
    ),
    *("requires", "published", "because"),
)
_SETTINGS = (*(field.name for field in fields(Settings)), *ALIASES, *SCHEDULER_OPTIONS)
_TEXTS = ("name", "method", "model", "dtype", "revision", "adapter", "because")


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
    hint = nearest(name, known, "`dllm ablate --list` lists all")
    raise ValueError(f"no configuration {name!r}: {hint}; or give a YAML file")


def _mapping(value: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    """Returns a mapping as it is; raises ValueError for another value or an unknown key."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping of {', '.join(known[:9])}, not {shown(value)}")
    for key in value:
        if key not in known:
            raise ValueError(f"{where}: unknown key {shown(key)}: {nearest(str(key), known)}")
    return value


def read_ablation(path: Path) -> Ablation:
    """Returns the ablation of a file.

    Raises ValueError that names the file and the key for whatever cannot be understood.
    """
    content = read_yaml(path)
    try:
        return _ablation(path.stem, content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _ablation(name: str, content: Any) -> Ablation:
    top = _mapping(content, "an ablation", _TOP)
    about, notes, limit = top.get("about"), top.get("notes") or [], top.get("limit")
    if not isinstance(about, str) or "\n" in about.strip():
        raise ValueError(f"about={shown(about)} must be one line of text")
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise ValueError("notes must be a list of texts")
    checked("limit", limit, Count | None)
    rows = [_row(where, values) for where, values in _written(top)]
    if not rows:
        raise ValueError("there is nothing to run: write a grid or a list of settings")
    names = [row.name for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two rows are called {twice!r}: give one of them another 'name'")
    return Ablation(name, about.strip(), tuple(rows), tuple(notes), limit)


def _written(top: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns each row as it is written, with where that is."""
    common = _mapping(top.get("common") or {}, "common", (*_OWN[1:], *_SETTINGS))
    grid = _mapping(top.get("grid") or {}, "grid", (*_OWN[1:-3], *_SETTINGS))
    listed, exclude = top.get("settings") or [], top.get("exclude") or []
    for key, items in (("settings", listed), ("exclude", exclude)):
        if not isinstance(items, list):
            raise ValueError(f"{key} must be a list, not {shown(items)}")
    if exclude and not grid:
        raise ValueError("exclude: there is no grid to take anything from")
    for number, item in enumerate(exclude, start=1):
        _mapping(item, f"exclude item {number}", tuple(grid))
    combined = combinations(grid, exclude) if grid else []
    written = [(f"grid: {one['name']}", {**common, **one}) for one in combined]
    for number, item in enumerate(listed, start=1):
        where = f"settings item {number}"
        own = _mapping(item, where, (*_OWN, *_SETTINGS))
        if "name" not in own:
            raise ValueError(f"{where} needs a 'name'")
        written.append((f"{where} ({own['name']})", {**common, **own}))
    return written


# A row.


def _row(where: str, values: Mapping[str, Any]) -> Row:
    """Returns a row of values as they are written; errors say where."""
    try:
        for key in _TEXTS:
            if values.get(key) is not None and not isinstance(values[key], str):
                raise ValueError(f"{key}={shown(values[key])} must be text")
        settings = {key: value for key, value in values.items() if key not in _OWN}
        missing = _missing(values.get("requires") or {})
        constraint = settings.pop("constraint", None)
        if constraint is not None and not missing:  # read once: a file may change meanwhile
            settings["constraint"] = _constraint(constraint)
        method = values["name"] if missing else method_of(settings)
        constrained = values.get("constrained", True)
        return Row(
            name=values["name"],
            method=values.get("method") or (method if constrained else f"{method} (free)"),
            model=values.get("model") or "tiny",
            dtype=values.get("dtype"),
            revision=values.get("revision"),
            adapter=values.get("adapter"),
            task=_task(values.get("task", "arithmetic")),
            batch_size=values.get("batch_size", 32),
            given=settings,
            published=_published(values),
            missing=missing,
            constrained=constrained,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _constraint(value: Any) -> Any:
    """Returns what all answers of a row are held to."""
    if isinstance(value, list):
        raise ValueError(
            f"constraint={shown(value)} is one for each prompt, and a row has one for all of them: "
            "write a row for each, or a grid"
        )
    return read_setting(value)


def _missing(required: Any) -> str:
    """Returns which of the required files are not there, and how to get them."""
    texts = isinstance(required, Mapping) and all(isinstance(how, str) for how in required.values())
    if not texts:
        raise ValueError(f"requires={shown(required)} must be a mapping: a file, and how to get it")
    gone = [f"{file} ({how})" for file, how in required.items() if not Path(file).exists()]
    return f"needs {', '.join(gone)}" if gone else ""


def _task(value: Any) -> TaskChoice:
    if isinstance(value, str):
        return TaskChoice(value)
    options = dict(_mapping(value, "task", tuple(field.name for field in fields(TaskChoice))))
    for key in ("data", "examples"):
        if options.get(key) is not None:
            options[key] = Path(str(options[key]))
    if not isinstance(options.get("name"), str):
        raise ValueError(f"task={shown(value)} needs a 'name'")
    return TaskChoice(**options)


def _published(values: Mapping[str, Any]) -> Published | None:
    if "published" not in values:
        if values.get("because"):
            raise ValueError("because: it gives the reason for 'published: null'")
        return None
    if values["published"] is None:
        return Published(source="none", because=values.get("because") or "")
    figures = _mapping(values["published"], "published", [f.name for f in fields(Published)])
    try:
        return Published(**{"source": "", **figures})
    except ValueError as error:
        raise ValueError(f"published: {error}") from None


# A list of schedulers.


@dataclass(frozen=True)
class Entry:
    """One setting of a scheduler: a point of the plot."""

    label: str  # the curve that the point is on
    scheduler: str | Mapping[str, Any]  # as it was written

    def __post_init__(self) -> None:
        schedulers.registry.create(self.scheduler)

    @property
    def text(self) -> str:
        """The scheduler's short form: as it was written, if it was written in one."""
        if isinstance(self.scheduler, str):
            return self.scheduler.strip()
        return text_of("scheduler", self.scheduler)

    @property
    def setting(self) -> str:
        """The short form without the scheduler's name; empty if no option is set."""
        return re.sub(r"^\w+\s*:?\s*", "", self.text)


def gather(lineup: str | None, settings: Iterable[str] = ()) -> list[Entry]:
    """Returns the entries of a list ("all" or a path), then settings given one by one.

    Raises ValueError if there are none, or for whatever cannot be understood.
    """
    listed = read_lineup(ALL if lineup == "all" else Path(lineup)) if lineup is not None else []
    entries = [*listed, *map(_single, settings)]
    if not entries:
        raise ValueError("there is nothing to compare: name schedulers, or the list 'all'")
    return entries


def read_lineup(path: Path) -> list[Entry]:
    """Returns the entries of a YAML list, in its order.

    Raises ValueError that names the file and the item for whatever cannot be understood.
    """
    if not path.is_file():
        raise ValueError(f"no such file with a list of schedulers: {path}")
    items = read_yaml(path)
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path} must hold a YAML list of schedulers")
    entries: list[Entry] = []
    for number, item in enumerate(items, start=1):
        try:
            entries.extend(_entries(item))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} item {number}: {error}") from error
    return entries


def _entries(item: Any) -> Iterable[Entry]:
    if not isinstance(item, Mapping) or not {"label", "settings"} & set(item):
        return [_single(item)]
    label, settings = item.get("label"), item.get("settings")
    if len(item) != 2 or not isinstance(label, str) or not isinstance(settings, list):
        raise ValueError(f"{shown(item)} must be a label, which is text, and a list of settings")
    if not settings:
        raise ValueError(f"label {label!r} has no settings")
    return [Entry(label, setting) for setting in settings]


def _single(setting: str | Mapping[str, Any]) -> Entry:
    """Returns the entry of a setting that stands alone: its label is the scheduler's name."""
    return Entry(schedulers.registry.create(setting).summary()["name"], setting)
