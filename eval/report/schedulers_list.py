"""The list of schedulers that a comparison runs, read from YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dllm import schedulers
from dllm.eval.run.describe import short

ALL = Path(__file__).parents[1] / "ablation" / "configs" / "schedulers.yaml"
_KEYS = {"label", "settings"}


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
        built = schedulers.registry.create(self.scheduler)
        return short(built.summary(), schedulers.registry)

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
    try:
        items = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
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
    if not isinstance(item, Mapping) or not _KEYS & set(item):
        return [_single(item)]
    label, settings = item.get("label"), item.get("settings")
    if set(item) != _KEYS or not isinstance(label, str) or not isinstance(settings, list):
        raise ValueError(f"{dict(item)} must be a label, which is text, and a list of settings")
    if not settings:
        raise ValueError(f"label {label!r} has no settings")
    return [Entry(label, setting) for setting in settings]


def _single(given: str | Mapping[str, Any]) -> Entry:
    """Returns the entry of a setting that stands alone: its label is the scheduler's name."""
    return Entry(schedulers.registry.create(given).summary()["name"], given)
