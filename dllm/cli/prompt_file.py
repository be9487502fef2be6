"""Prompts of a file: decoded in batches, each answer written as it comes, taken up again."""

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
from dllm.cli.asked import STANDARD, Asked
from dllm.cli.shown import say
from dllm.cli.shown.measured import progress
from dllm.eval.run.describe import Setup, name_of
from dllm.eval.run.results import append_lines, mend, writing
from dllm.eval.tasks.task import Task
from dllm.generate import Stream
from dllm.infilling.rows import rows_of
from dllm.models.model import DenoisingModel
from dllm.reading import parse_json
from dllm.settings import Settings

ROWS = 16  # decoded at a time unless --batch-size says otherwise
_TOGETHER = 1024  # prompts of one call, so that what is kept of all of them stays small
_OF_PROMPTS = ("constraint", "template")  # settings that may be lists with one for each prompt
_KEYS = {"run", "text", "settings"}  # of every line that was written here


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
        for name in _OF_PROMPTS:
            held = getattr(self.settings, name)
            if isinstance(held, list) and len(held) != len(asked):
                raise ValueError(
                    f"{name} has {len(held)} entries and there are {len(asked)} prompts: give one "
                    "for all, or a list with one for each, null for those without"
                )
        for one in asked:
            try:
                rows_of(self.model, self._input(one), self._of([one]))
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
        common = (name_of(described), described)
        left = sorted(asked, key=lambda one: len(str(one.prompt)))
        for start in range(0, len(left), _TOGETHER):
            part = dict(enumerate(left[start : start + _TOGETHER]))
            running = self._stream(list(part.values()))
            for event in running:
                if event.finished:
                    yield _written({n: part.pop(n) for n in event.finished}, running, common)
            if part:  # they had nothing to fill, so no step finished them
                yield _written(part, running, common)

    def _stream(self, asked: Sequence[Asked]) -> Stream:
        seed = self.settings.seed
        several, seeds = self.settings.n, None
        if isinstance(seed, int):
            seeds = [seed + (one.number - 1) * several + (one.sample or 0) for one in asked]
        prompts = [prompt for one in asked for prompt in self._input(one)]
        once = replace(self._of(asked), seed=seeds, n=1)
        return Stream(self.model, prompts, once, bound=self.settings.batch_size or ROWS)

    def _of(self, asked: Sequence[Asked]) -> Settings:
        """Returns the settings of some prompts, which are not in the file's order."""
        listed = {name: getattr(self.settings, name) for name in _OF_PROMPTS}
        own: dict[str, Any] = {
            name: [held[one.number - 1] for one in asked]
            for name, held in listed.items()
            if isinstance(held, list)
        }
        return replace(self.settings, **own)

    def _input(self, one: Asked) -> Any:
        return options.inputs([one.prompt], self.as_chats and isinstance(one.prompt, str))


def _written(
    asked: Mapping[int, Asked], running: Stream, common: tuple[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the lines of finished prompts."""
    out, lines = running.rows(list(asked)), []
    constrained = common[1]["other"].get("constraint")
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
            **({} if constrained is None else {"forced": metrics.forced}),
            **({"holes": [hole.text for hole in out.holes[row]]} if out.holes else {}),
            "settings": common[1],
        }
        lines.append(line)
    return lines


def answer(job: Job, asked: Sequence[Asked], output: Path, as_json: bool) -> None:
    """Answers what is not answered yet, and says how far it came if it is stopped."""
    job.check(asked)
    if job.settings.n > 1:
        asked = [replace(one, sample=n) for one in asked for n in range(job.settings.n)]
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
    ours = job.describe()  # once: it reads and digests the sources of the parts
    run, described = name_of(ours), json.loads(json.dumps(ours, default=str))
    answered: Counter[str] = Counter()
    of_id: dict[str, Any] = {}
    for line in _known(output):
        if line["run"] != run:
            raise ValueError(
                f"{output} holds answers of another model or other settings "
                f"({_difference(line['settings'], described)}): give another --output, or the "
                "settings of that file"
            )
        prompt = line.get("prompt", line.get("messages"))
        answered[_key(line.get("id"), prompt, line.get("sample"))] += 1
        of_id[repr(line.get("id"))] = prompt
    left = []
    for one in asked:
        key = _key(one.id, one.prompt, one.sample)
        if one.id is not None and of_id.get(repr(one.id), one.prompt) != one.prompt:
            raise ValueError(
                f"{one.where}: the id {one.id!r} is that of another prompt in {output}: give "
                "another --output, or another id"
            )
        if answered[key]:
            answered[key] -= 1
        else:
            left.append(one)
    return left


def _key(*of: Any) -> str:
    return json.dumps(of, sort_keys=True)


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
