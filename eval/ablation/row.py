"""Reads a row of an ablation as it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dllm.aliases import ALIASES, SCHEDULER_OPTIONS
from dllm.eval.ablation.ablation import Row, TaskChoice, check_given, method_of
from dllm.eval.ablation.published import Published, read_published
from dllm.registry import nearest
from dllm.settings import Settings

# Keys that are no settings of a generation.
OWN = (
    *("name", "method", "model", "dtype", "task", "batch_size", "requires"),
    *("published", "because"),
)
SETTINGS = (*(field.name for field in fields(Settings)), *ALIASES, *SCHEDULER_OPTIONS)
_TEXTS = ("name", "method", "model", "dtype", "because")


@dataclass(frozen=True)
class Written:
    """A row as it is written, and where."""

    where: str
    values: Mapping[str, Any]

    def row(self) -> Row:
        """Returns what is written as a row; errors say where."""
        try:
            return self._row()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.where}: {error}") from error

    def _row(self) -> Row:
        values = self.values
        for key in _TEXTS:
            if values.get(key) is not None and not isinstance(values[key], str):
                raise ValueError(f"{key}={values[key]!r} must be text")
        given = {key: value for key, value in values.items() if key not in OWN}
        missing = self._missing()
        if not missing:
            check_given(given)
        return Row(
            name=values["name"],
            method=values.get("method") or (values["name"] if missing else method_of(given)),
            model=values.get("model") or "tiny",
            dtype=values.get("dtype"),
            task=_task(values.get("task", "arithmetic")),
            batch_size=values.get("batch_size", 32),
            given=given,
            published=self._published(),
            missing=missing,
        )

    def _missing(self) -> str:
        """Returns which of the files under `requires` are not there, and how to get them."""
        wanted = self.values.get("requires") or {}
        if not isinstance(wanted, Mapping) or not all(isinstance(w, str) for w in wanted.values()):
            raise ValueError(f"requires={wanted!r} must be a mapping: a file, and how to get it")
        gone = [f"{file} ({how})" for file, how in wanted.items() if not Path(file).exists()]
        return f"needs {', '.join(gone)}" if gone else ""

    def _published(self) -> Published | None:
        values = self.values
        if "published" not in values:
            if values.get("because"):
                raise ValueError("because: it gives the reason for 'published: null'")
            return None
        if values["published"] is None:
            return Published(source="none", because=values.get("because") or "")
        return read_published(values["published"])


def _task(given: Any) -> TaskChoice:
    if isinstance(given, str):
        return TaskChoice(given)
    known = tuple(field.name for field in fields(TaskChoice))
    options = dict(mapping(given, "task", known))
    for key in ("data", "examples"):
        if options.get(key) is not None:
            options[key] = Path(str(options[key]))
    if not isinstance(options.get("name"), str):
        raise ValueError(f"task={given!r} needs a 'name'")
    return TaskChoice(**options)


def mapping(given: Any, where: str, known: Sequence[str]) -> Mapping[str, Any]:
    """Returns a mapping as it was given; raises ValueError for another value or an unknown key."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a mapping of {', '.join(known[:9])}, not {given!r}")
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}: {nearest(str(key), known)}")
    return given
