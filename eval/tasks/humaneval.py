"""Python functions from their docstrings (HumanEval, 2107.03374), scored by their tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dllm.eval.sandbox import Sandbox
from dllm.eval.tasks.completion import Completion, complete, cut
from dllm.eval.tasks.dataset import Record, Source, records
from dllm.eval.tasks.judgement import Judgement
from dllm.eval.tasks.options import TaskOptions
from dllm.eval.tasks.problem import Problem
from dllm.registry import nearest

_KEYS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_TEST = Source("openai/openai_humaneval", None, "test", _KEYS)

_ASKED = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n"
    "```python\n{}\n```"
)


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
    name = name or DEFAULT_STYLE
    if name not in STYLES:
        raise ValueError(f"unknown style {name!r} of humaneval: {nearest(name, STYLES)}")
    return STYLES[name]


def read(options: TaskOptions) -> dict[str, Record]:
    """Returns the records of the file or of the hub, by task id."""
    if options.shots is not None or options.examples is not None:
        raise ValueError("--shots, --examples: humaneval is asked without solved problems")
    return {record["task_id"]: record for record in records(_TEST, options.data)}


def problems(style: Style, data: Mapping[str, Record]) -> list[Problem]:
    """Returns the problem of each record."""
    found = []
    for name, record in data.items():
        turns = style.turns(record["prompt"])
        found.append(
            Problem(
                id=name,
                prompt="\n\n".join(text for _, text in turns) or record["prompt"],
                response=record["canonical_solution"],
                answer=record["canonical_solution"],
                turns=turns,
            )
        )
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
