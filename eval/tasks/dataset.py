"""Records of a published data set, from a file of JSON lines or from the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and the texts that each of its records has."""

    path: str
    name: str | None
    split: str
    keys: tuple[str, ...]
    option: str = "--data"  # names a file instead


Record = dict[str, str]


def records(source: Source, file: Path | None) -> list[Record]:
    """Returns the records of a file if one is given, else of the hub.

    Raises ValueError for a file that is missing or holds something else, and where the hub cannot
    be read.
    """
    return _from_hub(source) if file is None else _from_file(source, file)


def _from_file(source: Source, file: Path) -> list[Record]:
    if not file.is_file():
        wrong = "is a folder: name a file of" if file.is_dir() else "no such file: it must hold"
        raise ValueError(
            f"{source.option} {file}: {wrong} JSON lines with {', '.join(source.keys)}"
        )
    read = gzip.open if file.suffix == ".gz" else open
    try:
        with read(file, "rt", encoding="utf-8") as lines:
            found = [
                _record(json.loads(line), source.keys, f"{file} line {number}")
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not a file of JSON lines: {error}") from None
    if not found:
        raise ValueError(f"{file} holds no records")
    return found


def _from_hub(source: Source) -> list[Record]:
    way_out = f"give {source.option} FILE, JSON lines with {', '.join(source.keys)}"
    try:
        import datasets  # optional, and slow to start
    except ModuleNotFoundError:
        raise ValueError(
            f"{source.path} is read from the hub with the package `datasets`, which is not "
            f"installed: {way_out}, or install dllm[eval]"
        ) from None
    try:
        rows = datasets.load_dataset(source.path, source.name, split=source.split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source.path} cannot be read from the hub ({error}): {way_out}"
        ) from None
    return [_record(row, source.keys, f"{source.path} row {n}") for n, row in enumerate(rows)]


def _record(row: Any, keys: Sequence[str], where: str) -> Record:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise ValueError(f"{where} must be an object with the texts {', '.join(keys)}")
    return {key: row[key] for key in keys}
