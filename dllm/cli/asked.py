"""Prompts as a file or the command line gives them, each with where it stands."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm.cli.shown import say
from dllm.reading import parse_json

STANDARD = Path("-")  # input or output, in place of a file


@dataclass(frozen=True)
class Asked:
    """A prompt of a file, or of the command line."""

    number: int  # from 1, without empty lines
    where: str  # in words
    prompt: Any  # a text, or the messages of a chat
    id: Any = None  # what the file calls it
    sample: int | None = None  # which of its answers, if there are several

    @property
    def row(self) -> dict[str, Any]:
        """What its line says of it."""
        known = {"id": self.id, "sample": self.sample}
        known = {name: value for name, value in known.items() if value is not None}
        return {
            "number": self.number,
            **known,
            "prompt" if isinstance(self.prompt, str) else "messages": self.prompt,
        }


def read_asked(path: Path) -> list[Asked]:
    """Returns the prompts of a file, "-" being standard input.

    A .jsonl file has a text, or a mapping with "prompt" or "messages" and perhaps an "id", a line;
    so has standard input if its first line is such a mapping. Any other file has a text a line.
    Empty lines are left out, which is said if prompts follow. Raises ValueError that names the line
    which is not one.
    """
    name = "standard input" if path == STANDARD else str(path)
    lines = [(n, line) for n, line in enumerate(_lines(path, name), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{name} holds no prompts: write one a line")
    if empty := lines[-1][0] - len(lines):
        say(f"{name}: {empty} empty line{'s are' if empty > 1 else ' is'} left out")
    as_json = path.suffix == ".jsonl" or (path == STANDARD and _is_mapping(lines[0][1]))
    asked = []
    for number, (line, text) in enumerate(lines, start=1):
        where = f"{name} line {line}"
        prompt, id_ = _parsed(text, where) if as_json else (text, None)
        asked.append(Asked(number, where, prompt, id_))
    first: dict[str, str] = {}
    for one in asked:
        if one.id is not None and first.setdefault(repr(one.id), one.where) != one.where:
            raise ValueError(f"{one.where} has the id {one.id!r} of {first[repr(one.id)]}")
    return asked


def read_texts(path: Path, count: int) -> list[str]:
    """Returns up to `count` prompts of a file that are texts."""
    asked = read_asked(path)[:count]
    chat = next((one for one in asked if not isinstance(one.prompt, str)), None)
    if chat is not None:
        raise ValueError(f'{chat.where} has messages: only texts, as "prompt", are taken here')
    return [one.prompt for one in asked]


def _lines(path: Path, name: str) -> list[str]:
    if path != STANDARD and path.is_dir():
        raise ValueError(f"{name} is a folder: name a file of prompts")
    if path != STANDARD and not path.exists():
        raise ValueError(f"there is no file of prompts {name!r}")
    try:
        text = sys.stdin.read() if path == STANDARD else path.read_text(encoding="utf-8-sig")
        text.encode()
    except UnicodeError as error:
        raise ValueError(f"{name} is no text file in UTF-8: {error}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{name} is no text file: line {line} holds a NUL character")
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


def _is_mapping(line: str) -> bool:
    try:
        value = json.loads(line)  # only to tell: it is read strictly afterwards
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool({"prompt", "messages"} & set(value))


def _parsed(line: str, where: str) -> tuple[Any, Any]:
    """Returns the prompt and the id of a line of JSON."""
    try:
        value = parse_json(line, where)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    if isinstance(value, str):
        return value, None
    keys = {"prompt", "messages"} & set(value) if isinstance(value, dict) else set()
    if len(keys) != 1:
        raise ValueError(
            f'{where} must be a text, or a mapping with the text "prompt" or the list "messages"'
        )
    prompt, id_ = value[keys.pop()], value.get("id")
    if isinstance(prompt, list if "messages" in value else str) and prompt:
        if id_ is None or isinstance(id_, str | int):
            return prompt, id_
        raise ValueError(f'{where}: "id" must be a text or a whole number')
    raise ValueError(f'{where}: "prompt" is a text and "messages" a list, and neither is empty')
