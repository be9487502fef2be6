"""Files with records of rows: a JSON line a row, alone or inside the results of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.reading import parse_json
from dllm.trace import TraceRecord
from dllm.trace.text import plural, visible

_COMMANDS = "`dllm generate ... --trace FILE` or `dllm eval ... --output FILE --trace`"
_BEGINNING = 1 << 16  # characters in which a file says what it is
HOW = f"{_COMMANDS} write files with traces"


@dataclass(frozen=True)
class Held:
    """One row of a file, with a record if it was kept."""

    number: int  # counts from 1
    id: str  # the problem's, "" of a row without one
    run: str  # names the settings in results, else ""
    where: str
    content: Any  # the record as it was read, None: the row has no trace

    @property
    def record(self) -> TraceRecord:
        """The record, checked; raises ValueError that says where it is wrong."""
        if self.content is None:
            raise ValueError(f"{self.where} has no trace: {HOW}")
        try:
            return TraceRecord.from_json(self.content)
        except ValueError as error:
            raise ValueError(f"{self.where} has a damaged trace: {error}") from None


def read_held(path: Path) -> list[Held]:
    """Returns the rows of a file, of each problem and run the last one.

    A last line that was cut off by a kill is ignored. Raises ValueError for other damage and when
    no row has a trace.
    """
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.jsonl"))) or "none"
        raise ValueError(f"{path} is a folder: name one of its files (JSON lines here: {inside})")
    if not path.exists():
        raise ValueError(f"there is no file {path}: {HOW}")
    rows: dict[tuple[str, ...], tuple[str, str, str, Any]] = {}
    for index, (where, line) in enumerate(_lines(path)):
        id_, run, content = _row(line, where)
        key = (run, id_) if run else (str(index),)
        rows.pop(key, None)
        rows[key] = (id_, run, where, content)
    held = [Held(number, *row) for number, row in enumerate(rows.values(), start=1)]
    if not any(row.content is not None for row in held):
        lack = "is empty" if not held else f"holds {plural(len(held), 'row')} without a trace"
        raise ValueError(f"{path} {lack}: {HOW}")
    return held


def write_records(path: Path, records: Sequence[TraceRecord]) -> None:
    """Writes a file anew; what it held before is gone."""
    lines = [json.dumps(record.to_json(), separators=(",", ":")) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")


def check_free(path: Path) -> None:
    """Checks that traces may be written to a path before there are any.

    Raises ValueError when it holds something else, OSError when nobody may write there.
    """
    existed = path.exists()
    with path.open("a", encoding="utf-8"):
        pass
    if not existed:
        path.unlink()
        return
    if not path.is_file():  # a device holds nothing, or no end of it
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(_BEGINNING)
    if first.strip() and not first.startswith('{"dllm_trace":'):
        raise ValueError(f"{path} exists and holds no traces: choose another file for --trace")


def _lines(path: Path) -> list[tuple[str, Any]]:
    """Returns each line's position in words and its JSON value."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file ({error}): {HOW}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            found.append((where, parse_json(line, where, allow_nan=True)))
        except ValueError as error:
            if number == len(lines) > 1 and isinstance(error.__cause__, json.JSONDecodeError):
                continue
            reason = error.__cause__ or error
            raise ValueError(f"{where} is no JSON ({reason}): {HOW}") from None
    return found


def _row(line: Any, where: str) -> tuple[str, str, Any]:
    keys = set(line) if isinstance(line, dict) else set()
    if "dllm_trace" in keys:
        return "", "", line
    if {"run", "id", "prompt", "text"} <= keys:
        return visible(str(line["id"])), visible(str(line["run"])), line.get("trace")
    if {"sequences", "trace"} <= keys:
        raise ValueError(
            f"{where} is from `dllm generate --json`, which has no text of tokens: {HOW}"
        )
    raise ValueError(f"{where} is neither a trace nor a result of `dllm eval`: {HOW}")
