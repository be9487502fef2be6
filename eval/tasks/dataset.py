"""Records of a data set, from a file or from the hub."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dllm.reading import parse_json
from dllm.registry import nearest


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and the texts that each of its records has."""

    path: str
    name: str | None
    split: str
    keys: tuple[str, ...]
    option: str = "--data"  # names a file instead


Record = dict[str, str]


class Literal(str):
    """A number as it is written in a file, which no reader has rounded."""


@dataclass(frozen=True)
class Row:
    """A record of a file, and where it is."""

    where: str
    fields: Mapping[str, Any]

    def text(self, field: str) -> str:
        """Returns a field's text or number; raises ValueError that lists the fields."""
        if field not in self.fields:
            raise ValueError(
                f"{self.where} has no field {field!r}: {nearest(field, self.fields)}; name another "
                "with --question-field or --answer-field, or mend the line"
            )
        return checked(self.fields[field], f"{self.where}, field {field!r}")


def checked(value: Any, where: str) -> str:
    """Returns a text that can be written; raises ValueError for any other value."""
    if isinstance(value, bool) or not isinstance(value, str):
        kind = "missing" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{where} must be a text or a number, but is {kind}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise ValueError(f"{where} has half a character ({half}): write it as UTF-8") from None
    return str(value)


def records(source: Source, file: Path | None) -> list[Record]:
    """Returns the records of a file if one is given, else of the hub.

    Raises ValueError for a file that is missing or holds something else, and where the hub cannot
    be read.
    """
    return _from_hub(source) if file is None else _from_file(source, file)


def rows(file: Path, option: str, content: str) -> list[Row]:
    """Returns the records of a file: JSON lines, a list (.json), or a table (.csv, .tsv).

    Any of them may be packed (.gz). Raises ValueError that names the file and the line.
    """
    if not file.is_file():
        wrong = "is a folder: name a file of" if file.is_dir() else "no such file: it must hold"
        raise ValueError(f"{option} {file}: {wrong} {content}")
    packed = file.suffix == ".gz"
    kind = (file.with_suffix("") if packed else file).suffix.lower()
    readers = {".json": _of_list, ".csv": _of_table, ".tsv": _of_table}
    opens = gzip.open if packed else open
    try:
        with opens(
            file, "rt", encoding="utf-8-sig", newline="" if kind in (".csv", ".tsv") else None
        ) as lines:
            found = list(readers.get(kind, _of_lines)(lines, file))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        noun = {".json": "JSON", ".csv": "a table", ".tsv": "a table"}.get(kind, "JSON lines")
        raise ValueError(f"{file} is not a file of {noun}: {error}") from None
    if not found:
        raise ValueError(f"{file} holds no records")
    return found


def _of_lines(lines: IO[str], file: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            wrong = f"{file} is not a file of JSON lines: line {number}"
            value = parse_json(line, wrong, number=Literal)
            yield Row(f"{file} line {number}", value if isinstance(value, dict) else {})


def _of_list(lines: IO[str], file: Path) -> Iterator[Row]:
    found = parse_json(lines.read(), file, number=Literal)
    if not isinstance(found, list):
        raise ValueError(
            f"{file} must hold a list of objects; a file with an object a line ends in .jsonl"
        )
    for number, value in enumerate(found, start=1):
        yield Row(f"{file} record {number}", value if isinstance(value, dict) else {})


def _of_table(lines: IO[str], file: Path) -> Iterator[Row]:
    separator = "\t" if ".tsv" in file.suffixes else ","
    reader = csv.reader(lines, delimiter=separator, strict=True)
    header = next(reader, [])
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file} line 1 has the column {twice!r} twice: keep one of them")
    for cells in reader:
        where = f"{file} line {reader.line_num}"
        if cells and len(cells) != len(header):
            raise ValueError(
                f"{where} has {len(cells)} cells where the header has {len(header)}: put a text "
                'with a separator or a line break in it between two "'
            )
        if cells:
            yield Row(where, dict(zip(header, cells, strict=True)))


def _from_file(source: Source, file: Path) -> list[Record]:
    content = f"JSON lines with {', '.join(source.keys)}"
    return [
        _record(row.fields, source.keys, row.where) for row in rows(file, source.option, content)
    ]


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
        found = datasets.load_dataset(source.path, source.name, split=source.split)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source.path} cannot be read from the hub ({error}): {way_out}"
        ) from None
    return [_record(row, source.keys, f"{source.path} row {n}") for n, row in enumerate(found)]


def _record(row: Mapping[str, Any], keys: Sequence[str], where: str) -> Record:
    if not all(type(row.get(key)) is str for key in keys):
        raise ValueError(f"{where} must be an object with the texts {', '.join(keys)}")
    return {key: checked(row[key], f"{where}, field {key!r}") for key in keys}
