"""A file of prompts: read, decoded in batches, each answer written as it comes, taken up again."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from dllm.cli import options
from dllm.cli.shown import say
from dllm.cli.shown.measured import progress
from dllm.eval.run.describe import Setup, name_of
from dllm.eval.run.results import append_lines, mend, writing
from dllm.eval.tasks.task import Task
from dllm.generate import Stream, stream
from dllm.models.model import DenoisingModel
from dllm.prompts import encode_all
from dllm.reading import parse_json
from dllm.settings import PARTS, Settings

STANDARD = Path("-")  # input or output, in place of a file
ROWS = 16  # decoded at a time unless --batch-size says otherwise
_TOGETHER = 1024  # prompts of one call, so that what is kept of all of them stays small
_KEYS = {"run", "text", "settings"}  # of every line that was written here


@dataclass(frozen=True)
class Asked:
    """A prompt of a file, or of the command line."""

    number: int  # from 1, without empty lines
    where: str  # in words
    prompt: Any  # a text, or the messages of a chat
    id: Any = None  # what the file calls it

    @property
    def row(self) -> dict[str, Any]:
        """What its line says of it."""
        known = (
            {"number": self.number} if self.id is None else {"number": self.number, "id": self.id}
        )
        return {**known, "prompt" if isinstance(self.prompt, str) else "messages": self.prompt}


def read_asked(path: Path) -> list[Asked]:
    """Returns the prompts of a file, "-" being standard input.

    A .jsonl file has a text, or a mapping with "prompt" or "messages" and perhaps an "id", a line;
    so has standard input if its first line is such a mapping. Any other file has a text a line.
    Raises ValueError that names the line which is not one.
    """
    name = "standard input" if path == STANDARD else str(path)
    lines = [(n, line) for n, line in enumerate(_lines(path, name), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{name} holds no prompts: write one a line")
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


@dataclass(frozen=True)
class Job:
    """Prompts, and all that decides how they are answered."""

    model: DenoisingModel
    settings: Settings
    as_chats: bool  # texts become the message of a user

    def check(self, asked: Sequence[Asked]) -> None:
        """Checks every prompt before any is decoded; errors say where it stands."""
        if isinstance(self.settings.seed, list):
            raise ValueError("seed: give one number for a file; each prompt adds its own to it")
        for one in asked:
            try:
                encode_all(self.model, self._input(one), self.settings)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{one.where}: {str(error).removeprefix('prompt 0 ')}") from None

    def describe(self) -> dict[str, Any]:
        """Returns what decides the answers, as JSON-ready values."""
        options_ = {"chat": True} if self.as_chats else {}
        task = Task("prompts", "", lambda *_: iter(()), lambda *_: False, options_)
        return Setup(self.model, task, self.settings).describe()

    def rows(self, asked: Sequence[Asked]) -> Iterator[list[dict[str, Any]]]:
        """Yields the lines of the prompts that one step finished, shortest prompts first."""
        described = self.describe()
        common, size = (name_of(described), described), self.settings.batch_size or ROWS
        left = sorted(asked, key=lambda one: len(str(one.prompt)))
        even = PARTS["cache"].create(self.settings.cache).even
        count = _TOGETHER if even or self.settings.batch_size else size
        for start in range(0, len(left), count):
            part = dict(enumerate(left[start : start + count]))
            running = self._stream(list(part.values()), size)
            for event in running:
                if event.finished:
                    yield _written({n: part.pop(n) for n in event.finished}, running, common)
            if part:  # they had nothing to fill, so no step finished them
                yield _written(part, running, common)

    def _stream(self, asked: Sequence[Asked], size: int) -> Stream:
        seed = self.settings.seed
        seeds = [seed + one.number - 1 for one in asked] if isinstance(seed, int) else None
        prompts = [prompt for one in asked for prompt in self._input(one)]
        return stream(self.model, prompts, replace(self.settings, seed=seeds, batch_size=size))

    def _input(self, one: Asked) -> Any:
        return options.inputs([one.prompt], self.as_chats and isinstance(one.prompt, str))


def _written(
    asked: Mapping[int, Asked], running: Stream, common: tuple[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the lines of finished prompts."""
    out, lines = running.rows(list(asked)), []
    for row, one in enumerate(asked.values()):
        metrics, texts = out.metrics.rows[row], out.texts
        line = {
            "run": common[0],
            **one.row,
            "text": None if texts is None else texts[row],
            "finish_reason": metrics.finish_reason,
            "prompt_tokens": metrics.prompt_tokens,
            "tokens": metrics.valid_tokens,
            "forwards": metrics.forwards,
            "settings": common[1],
        }
        lines.append(line)
    return lines


def answer(job: Job, asked: Sequence[Asked], output: Path, as_json: bool) -> None:
    """Answers what is not answered yet, and says how far it came if it is stopped."""
    job.check(asked)
    to_file = output != STANDARD
    if to_file:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()  # held before it is read, so that two do not answer the same prompts
    with options.naming(output), writing(output) if to_file else nullcontext():
        if to_file:
            mend(output)
        left = _left(job, asked, output) if to_file else asked
        there = done = len(asked) - len(left)
        if there:
            say(f"{there} of {len(asked)} were there already")
        bars = progress(quiet=not to_file and sys.stdout.isatty())
        try:
            with bars:
                bar = bars.add_task("prompts", total=len(asked), completed=done, note="")
                for lines in job.rows(left):
                    _write(output, lines)
                    done += len(lines)
                    bars.update(bar, advance=len(lines))
        except KeyboardInterrupt:
            if to_file:  # the signal may have come between a line and its count
                done = len(asked) - len(_left(job, asked, output))
            kept = f"{output} is kept and the same command goes on" if to_file else "printed"
            say(f"interrupted after {done} of {len(asked)} prompts; {kept}")
            raise typer.Exit(options.INTERRUPTED) from None
    if as_json and to_file:
        print(json.dumps({"output": str(output), "prompts": done, "were_there": there}))


def _write(output: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    if output.is_file():
        append_lines(output, lines)
        return
    # Standard output, or a device, which has no disk to wait for.
    with nullcontext(sys.stdout) if output == STANDARD else output.open("a") as file:
        for line in lines:
            print(json.dumps(line), file=file, flush=True)


def _left(job: Job, asked: Sequence[Asked], output: Path) -> list[Asked]:
    """Returns the prompts that a file has no answer to.

    Raises ValueError if it holds something else, or answers of another model or other settings.
    """
    described = json.loads(json.dumps(job.describe(), default=str))
    answered: Counter[str] = Counter()
    of_id: dict[str, str] = {}
    for line in _known(output):
        if line["run"] != name_of(job.describe()):
            raise ValueError(
                f"{output} holds answers of another model or other settings "
                f"({_difference(line['settings'], described)}): give another --output, or the "
                "settings of that file"
            )
        key = _key(line.get("id"), line.get("prompt", line.get("messages")))
        answered[key] += 1
        of_id[repr(line.get("id"))] = key
    left = []
    for one in asked:
        key = _key(one.id, one.prompt)
        if one.id is not None and of_id.get(repr(one.id), key) != key:
            raise ValueError(
                f"{one.where}: the id {one.id!r} is that of another prompt in {output}: give "
                "another --output, or another id"
            )
        if answered[key]:
            answered[key] -= 1
        else:
            left.append(one)
    return left


def _key(id_: Any, prompt: Any) -> str:
    return json.dumps([id_, prompt], sort_keys=True)


def _known(output: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file of answers; a device has none."""
    if not output.is_file():
        return
    with output.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            where = f"{output} line {number} is no answer of `dllm generate`, choose another file"
            value = parse_json(line, f"{where}: it", allow_nan=True)
            if not isinstance(value, dict) or not set(value) >= _KEYS:
                raise ValueError(f"{where}: it has other fields")
            yield value


def _difference(there: Any, now: Mapping[str, Any]) -> str:
    """Returns in words what of two descriptions differs first."""
    there = there if isinstance(there, dict) else {}
    key = next((key for key in (*now, *there) if there.get(key) != now.get(key)), "dllm")
    return f"{key} is {there.get(key)} there, and {now.get(key)} now"
