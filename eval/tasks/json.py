"""Answers that must be JSON of a schema: sums, which the embedded model can do, and records.

Each problem says by a `JsonSchema` what its answer must be, and is decoded under it unless a run is
made without. Judged is whether the answer is JSON, whether its schema accepts it, and how much of
it is what was asked for.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from dllm.constraints.json_schema import JsonSchema
from dllm.eval.tasks import arithmetic
from dllm.eval.tasks.task import (
    Judgement,
    Problem,
    Split,
    Task,
    TaskOptions,
    choose,
    split_of,
)
from dllm.options import CountOrNone, Options
from dllm.reading import parse_json

STYLES = {"plain": False, "chat": True}  # whether prompts are chats
_FENCE = re.compile(r"(?s)(?:```|~~~)(?:json)?[ \t]*\n(.*?)(?:\n[ \t]*(?:```|~~~)|\Z)")
_PEOPLE = ("Ada", "Bruno", "Chloé", "Dmitri", "Emeka", "Farah", "Greta", "Hiro", "Inés", "Jun")
_CITIES = ("Berlin", "Lagos", "Lima", "Osaka", "Oslo", "Pune", "São Paulo", "Toronto")
_ROLES = ("admin", "author", "editor", "reader")
_TAGS = ("blue", "fragile", "heavy", "new", "round", "sold")


@dataclass(frozen=True)
class Asked(Problem):
    """A problem with the schema of its answer, which is JSON."""

    schema: str = field(kw_only=True)  # as JSON


@dataclass(frozen=True)
class Field:
    """A property of a record: its schema, and how a value is drawn."""

    schema: Mapping[str, Any]
    draw: Callable[[random.Random], Any]


def _date(source: random.Random) -> str:
    return f"{source.randint(1950, 2020)}-{source.randint(1, 12):02d}-{source.randint(1, 28):02d}"


def _address(source: random.Random) -> dict[str, str]:
    return {"city": source.choice(_CITIES), "code": f"{source.randint(0, 99999):05d}"}


def _contact(source: random.Random) -> str:
    return f"{source.choice(('info', 'mail', 'post'))}{source.randint(1, 99)}@example.org"


FIELDS: dict[str, Field] = {
    "name": Field({"type": "string", "minLength": 1, "maxLength": 20}, lambda s: s.choice(_PEOPLE)),
    "age": Field({"type": "integer", "minimum": 0, "maximum": 120}, lambda s: s.randint(18, 99)),
    "email": Field({"type": "string", "format": "email"}, _contact),
    "born": Field({"type": "string", "format": "date"}, _date),
    "active": Field({"type": "boolean"}, lambda s: s.random() < 0.5),
    "role": Field({"enum": list(_ROLES)}, lambda s: s.choice(_ROLES)),
    "tags": Field(
        {"type": "array", "items": {"enum": list(_TAGS)}, "minItems": 1, "maxItems": 3},
        lambda s: s.sample(_TAGS, s.randint(1, 3)),
    ),
    "address": Field(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1, "maxLength": 20},
                "code": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["city", "code"],
            "additionalProperties": False,
        },
        _address,
    ),
    "score": Field(
        {"type": "number", "minimum": 0, "maximum": 10}, lambda s: s.randint(1, 99) / 10
    ),
    "manager": Field(
        {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 20}, {"type": "null"}]},
        lambda s: s.choice((*_PEOPLE, None)),
    ),
}
SUM = {"type": "integer", "minimum": 0, "maximum": arithmetic.LARGEST}


@dataclass(frozen=True)
class Selection(Options):
    """Sums or records, how many fields a record has, and the shape of prompts."""

    kind: str = "sums"
    fewest: CountOrNone = 2  # fields of a record
    most: CountOrNone = 5
    style: str = "plain"

    def __post_init__(self) -> None:
        choose("json", "kind", self.kind, KINDS)
        choose("json", "style", self.style, STYLES)
        if not 1 <= self.fewest <= self.most <= len(FIELDS):
            raise ValueError(
                f"fields={self.fewest}-{self.most} must lie between 1 and {len(FIELDS)}, the "
                "smaller number first"
            )

    def describe(self) -> dict[str, Any]:
        """Returns what decides the problems, as JSON-ready values."""
        fields = {"fields": [self.fewest, self.most]} if self.kind == "records" else {}
        return {"kind": self.kind, **fields, "style": self.style}


Made = tuple[str, Any, Mapping[str, Any]]  # of a problem: its prompt, answer and schema


def _sum(source: random.Random, _: Selection) -> Made:
    """Makes a word problem with its work, of which the embedded model has learnt the last line."""
    prompt, response, answer = arithmetic.make(source)
    work = response.rpartition(answer)[0]
    return f"{prompt} {work}", int(answer), SUM


def _record(source: random.Random, selection: Selection) -> Made:
    """Makes a schema of some properties, and a record whose facts stand in another order."""
    names = source.sample(list(FIELDS), source.randint(selection.fewest, selection.most))
    record = {name: FIELDS[name].draw(source) for name in names}
    schema = {
        "type": "object",
        "properties": {name: dict(FIELDS[name].schema) for name in names},
        "required": names,
        "additionalProperties": False,
    }
    facts = [f"- {name}: {_said(record[name])}" for name in source.sample(names, len(names))]
    lines = ["Write these facts as JSON that the schema accepts, and nothing else."]
    lines += [f"Schema: {written(schema)}", "Facts:", *facts, "JSON:", ""]
    return "\n".join(lines), record, schema


KINDS: dict[str, Callable[[random.Random, Selection], Made]] = {"sums": _sum, "records": _record}


def select(text: str, options: TaskOptions) -> Selection:
    """Returns what stands behind the task's name, `records,fields=2-5`, with the options."""
    refused = [flag for flag in options.flags if flag != "--style"]
    if refused:
        raise ValueError(
            f"{', '.join(refused)}: json makes its own problems; it has --style and, as in "
            "json:records,fields=2-5, a kind and a number of fields; json_mode_eval reads --data"
        )
    kind, _, rest = (part.strip() for part in text.partition(","))
    named = Selection(kind=kind or Selection.kind, style=options.style or Selection.style)
    if not rest:
        return named
    found = re.fullmatch(r"fields\s*=\s*(\d+)(?:\s*-\s*(\d+))?", rest)
    if found is None or named.kind != "records":
        raise ValueError(
            f"json:{text}: the only option is the number of fields of records: write "
            "json:records,fields=4 or json:records,fields=2-5"
        )
    fewest = int(found[1])
    return Selection(named.kind, fewest, int(found[2] or fewest), named.style)


def problems(selection: Selection, split: Split, seed: int, num: int) -> Iterator[Asked]:
    """Yields problems of a split; the same seed gives the same ones."""
    kind, number = selection.kind, 0
    source = random.Random(f"json-{kind}-{split}-{seed}")
    while number < num:
        prompt, answer, schema = KINDS[kind](source, selection)
        if split_of(prompt) == split:
            problem = asked(f"{kind}-{split}-{seed}-{number}", prompt, answer, schema)
            turns = (("user", prompt.strip()),) if STYLES[selection.style] else ()
            yield replace(problem, turns=turns)
            number += 1


def asked(name: str, prompt: str, answer: Any, schema: Any) -> Asked:
    """Returns the problem whose answer is a value, held to a schema."""
    text, constraint = written(answer), JsonSchema(schema)
    return Asked(name, prompt, text, text, constraint=constraint, schema=written(schema))


def judge(problem: Problem, text: str) -> Judgement:
    """Returns whether an answer is the value that was asked for, and how near it comes.

    The JSON is the whole text, or else what stands in its last fenced block. `valid` is what the
    package jsonschema says of it; `fields` is the share of the value's leaves, counted by their
    paths, that are there and the same.
    """
    assert isinstance(problem, Asked)
    right, found = parse_json(problem.answer, "the right answer"), _stated(text)
    known = leaves(right)
    there = {} if found is None else leaves(found[0])
    fields = sum(path in there and same(there[path], value) for path, value in known.items())
    details = {
        "parses": found is not None,
        "valid": found is not None and _validator(problem.schema).is_valid(found[0]),
        "exact": found is not None and same(found[0], right),
        "fields": fields / len(known),
    }
    return Judgement(bool(details["exact"]), details, extracted=found is not None)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    """Returns what is in a value and holds nothing itself, by its path."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict | list):
        inside = list(value.items() if isinstance(value, dict) else enumerate(value))
    if not inside:
        return {path: value}
    return {key: leaf for at, one in inside for key, leaf in leaves(one, (*path, at)).items()}


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 is 1.0, and true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def written(value: Any) -> str:
    """Returns a value as compact JSON, as a `JsonSchema` spells it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def check_package() -> None:
    """Raises ValueError, with the way to have it, where the package that validates is missing."""
    _validator("true")


def task_of(selection: Selection) -> Task:
    """Returns the task of the selected problems."""
    return Task(
        name="json",
        description="JSON that a schema accepts: answers to sums, or records",
        problems=partial(problems, selection),
        judge=judge,
        options=selection.describe(),
        select=_selected,
        constrained=True,
    )


def _selected(text: str, options: TaskOptions) -> Task:
    check_package()
    return task_of(select(text, options))


TASK = task_of(Selection())


def _said(value: Any) -> str:
    """Returns a fact in words as far as there are some."""
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(one)}" for name, one in value.items())
    return value if isinstance(value, str) else written(value)


def _stated(text: str) -> tuple[Any] | None:
    """Returns the value that a text states, None if it is none."""
    for part in (text, *_FENCE.findall(text)[-1:]):
        try:
            return (parse_json(part.strip(), "the answer"),)
        except ValueError:
            continue
    return None


@cache
def _validator(schema: str) -> Any:
    try:
        from jsonschema import FormatChecker, validators  # of the extra dllm[eval]
    except ModuleNotFoundError:
        raise ValueError(
            "answers in JSON are validated with the package `jsonschema`, which is not installed: "
            "install dllm[eval]"
        ) from None
    value = parse_json(schema, "the schema")
    made = validators.validator_for(value, default=validators.Draft202012Validator)
    return made(value, format_checker=FormatChecker())
