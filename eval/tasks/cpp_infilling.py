"""C++ with holes, from a file in the form of eth-sri/HumanEval-MRI-Cpp (2508.10111).

An object a line: the `splits` of a function's body, between which its `removed_spans` are missing,
behind a `prompt` (its description and head); for the compiler a `declaration` and a `test`. Each
problem is laid out as a template of its own, as the published evaluation has it. Judged is whether
the function compiles with its tests, and whether they pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dllm.constraints.template import CAL, Hole, Lengths, Template
from dllm.eval.tasks.compiled import Compiler, open_compiler
from dllm.eval.tasks.dataset import Row, checked, rows
from dllm.eval.tasks.task import Judgement, Problem, ReadTask, Task, TaskOptions

# Behind the last split in the published evaluation, so that the model sees a whole program.
MAIN = "\nint main(){\n// TODO\n }"
LONGEST = 2**12  # tokens of a hole
_TEXTS = ("prompt", "declaration", "test")
_LISTS = ("splits", "removed_spans")
_KEYS = ("instance_id", *_TEXTS, *_LISTS)
# Lengths that holes are tried with, by their number: a row of the canvas for all of one problem.
_AUTO: dict[int, Lengths] = {
    1: "auto",
    2: (2, 4, 6, 8, 12, 16, 24, 32),
    3: (4, 8, 16, 32),
    4: (8, 24),
    5: (8, 24),
    6: (8, 24),
}


@dataclass(frozen=True)
class Body:
    """The body of a function with holes, and what makes a program of it."""

    prompt: str
    declaration: str
    test: str
    splits: tuple[str, ...]
    spans: tuple[str, ...]

    @property
    def parts(self) -> list[str]:
        """The texts from the first hole on, as they are right: a hole, a split, ..."""
        return list(chain(*zip(self.spans, self.splits[1:], strict=True)))

    def template(self, tokens: Lengths) -> Template:
        """Returns what stands behind the prompt and the first split."""
        *inner, last = self.splits[1:]
        behind = [*inner, last + MAIN]
        parts: list[str | Hole] = []
        for split in behind:
            parts += [Hole(tokens=tokens), split]
        return Template(*parts)

    def code(self, text: str) -> str:
        """Returns the program without its tests, of what a model wrote from the first hole on."""
        body, found, _ = text.rpartition(MAIN)
        if text and not found:  # no text at all is no answer
            raise ValueError(
                f"{text[-40:]!r} ends an answer, whose fixed text ends in {MAIN!r}: the model's "
                "tokenizer does not give back C++ as it is written, so that it cannot be scored"
            )
        return self.declaration + self.splits[0] + body


@dataclass(frozen=True)
class Judge:
    """Compiles the filled function with its tests and runs them, where code may be run."""

    data: Mapping[str, Body]
    compiler: Compiler | None  # None: nothing is executed, and nothing scored

    def __call__(self, problem: Problem, text: str) -> Judgement:
        """Returns whether the tests pass."""
        body = self.data[problem.id]
        code = body.code(text)
        details: dict[str, Any] = {
            "exact": text == problem.response,
            "spans": len(body.spans),
            "code": code,
        }
        if self.compiler is None:
            return Judgement(None, details)
        found = self.compiler.run(f"{code}\n{body.test}")
        ending = {"ending": found.ending, "error": found.error, "sandbox": found.level}
        return Judgement(found.passed, {"compiles": found.compiles, **details, **ending})


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file."""
    if options.data is None:
        raise ValueError(
            f"cpp_infilling: name the file with --data FILE, JSON lines with {', '.join(_KEYS)}; "
            'datasets.load_dataset("eth-sri/HumanEval-MRI-Cpp", split="test").to_json(FILE) '
            "writes the published one"
        )
    if options.shots is not None or options.examples is not None or options.style is not None:
        raise ValueError(
            "--shots, --examples, --style: cpp_infilling is laid out as it is in the file"
        )
    tokens = lengths_of(options.hole_tokens)
    data = read(rows(options.data, "--data", f"JSON lines with {', '.join(_KEYS)}"))
    problems = [_problem(name, body, tokens) for name, body in data.items()]
    compiler = open_compiler() if options.run_code else None
    level = None if compiler is None else compiler.sandbox.level
    notes = {"shots": 0, "sandbox": level, "compiler": None if compiler is None else compiler.path}
    asked = options.hole_tokens or "auto"
    task = TASK.of(problems, Judge(data, compiler), "infilling", notes, scored=options.run_code)
    # Two problems may have the same beginning, with other holes behind it.
    return replace(task, options={**task.options, "hole_tokens": asked}, repeats=True)


TASK = ReadTask("cpp_infilling", "C++ with holes", "eth-sri/HumanEval-MRI-Cpp", read_task)


def lengths_of(asked: str | None) -> Lengths:
    """Returns the lengths that `--hole-tokens` names: a way to find them, or numbers."""
    if asked is None or asked.strip() in ("auto", CAL):
        return "auto" if asked is None else asked.strip()
    counts = [part.strip() for part in asked.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= LONGEST for part in counts):
        raise ValueError(
            f"--hole-tokens {asked!r} must be a number of tokens from 1 to {LONGEST}, several, "
            'such as "4,8,16", "auto", or of single holes "cal"'
        )
    return int(counts[0]) if len(counts) == 1 else tuple(map(int, counts))


def read(found: list[Row]) -> dict[str, Body]:
    """Returns the bodies of a file by their ids; raises ValueError by line and field."""
    data: dict[str, Body] = {}
    for row in found:
        # The files that the published generator writes have the same under another name.
        key = "task_id" if "instance_id" not in row.fields else "instance_id"
        missing = [one for one in (key, *_TEXTS, *_LISTS) if one not in row.fields]
        if missing:
            there = ", ".join(row.fields) or "none"
            raise ValueError(
                f"{row.where} has no field {missing[0].replace('task_id', 'instance_id')!r}: it "
                f"must be an object with {', '.join(_KEYS)}; its fields are: {there}"
            )
        name = checked(row.fields[key], f"{row.where}, field {key!r}")
        if name in data:
            raise ValueError(
                f"{row.where} has the id {name!r} a second time: give each problem one of its own"
            )
        data[name] = _body(row)
    return data


def _body(row: Row) -> Body:
    texts = {key: checked(row.fields[key], f"{row.where}, field {key!r}") for key in _TEXTS}
    splits, spans = (_texts(row, key) for key in _LISTS)
    if not spans or len(splits) != len(spans) + 1:
        raise ValueError(
            f"{row.where} has {len(splits)} splits and {len(spans)} removed_spans: there must be "
            "at least one span, and one split more than spans"
        )
    return Body(**texts, splits=splits, spans=spans)


def _texts(row: Row, key: str) -> tuple[str, ...]:
    value, where = row.fields[key], f"{row.where}, field {key!r}"
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list of texts, but is a {type(value).__name__}")
    return tuple(checked(one, f"{where}, item {number}") for number, one in enumerate(value))


def _problem(name: str, body: Body, tokens: Lengths) -> Problem:
    count = len(body.spans)
    if tokens == "auto":
        if count not in _AUTO:
            raise ValueError(
                f"problem {name!r} has {count} holes, more than lengths can be tried of together: "
                "give one length, --hole-tokens 16"
            )
        tokens = _AUTO[count]
    right = "".join(body.parts) + MAIN
    answer = "\n".join(body.spans)
    prompt = body.prompt + body.splits[0]
    return Problem(name, prompt, right, answer, template=body.template(tokens))
