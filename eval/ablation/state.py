"""What an ablation's folder remembers: which run and file belong to each row."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dllm
from dllm.eval.ablation.ablation import Row
from dllm.eval.tasks import Task
from dllm.settings import resolve

FILE = "ablation.json"


@dataclass(frozen=True)
class Entry:
    """Where the results of a row are."""

    key: str  # of what the row asks for: another one is another row
    run: str
    file: str  # relative to the folder


class State:
    """The rows of a folder that were begun, written anew whenever one begins."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._entries: dict[str, Entry] = {}
        if self.path.exists():
            try:
                rows = json.loads(self.path.read_text(encoding="utf-8"))["rows"]
                self._entries = {name: Entry(**entry) for name, entry in rows.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.path} is not the record of an ablation ({error}): delete it, what was "
                    "measured is in runs/ and is found again"
                ) from None

    @property
    def names(self) -> list[str]:
        """The rows that were begun."""
        return list(self._entries)

    def entry(self, name: str) -> Entry | None:
        """Returns where a row's results are, None if it was never begun."""
        return self._entries.get(name)

    def note(self, name: str, entry: Entry) -> None:
        """Remembers a row; a kill leaves the file as it was or as it is, never in between."""
        self._entries[name] = entry
        rows = {known: asdict(value) for known, value in self._entries.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump({"rows": rows}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


def key_of(row: Row, task: Task) -> str:
    """Returns a digest of what a row asks for, known before its model is loaded."""
    asked: dict[str, Any] = {
        "version": dllm.__version__,
        "model": row.model,
        "dtype": row.dtype,
        "task": [task.name, dict(task.options)],
        "settings": str(resolve({}, None, row.given)),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
