"""A task: its problems in three splits, the judge of their answers, and its options."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dllm.constraints.base import Constraint
from dllm.constraints.span import ConstraintSpan
from dllm.constraints.template import Template
from dllm.constraints.written import described
from dllm.options import Count, Options, Range, checked
from dllm.registry import nearest

Choice = TypeVar("Choice")
Shots = Annotated[int, Range(0, 2**10)]

Split = Literal["train", "validation", "test"]
Maker = Callable[[random.Random], tuple[str, str, str]]  # of prompt, response and answer
DEFAULT_NUM = 1000  # problems of a stream
_BUCKETS: dict[str, range] = {
    "test": range(10),
    "validation": range(10, 15),
    "train": range(15, 100),
}


@dataclass(frozen=True)
class Problem:
    """One problem with the single response that is right."""

    id: str
    prompt: str
    response: str  # everything the model should write
    answer: str  # what is compared, a part of the response
    turns: tuple[tuple[str, str], ...] = ()  # role and text; empty: the prompt is no chat
    # The id of the problem that this is a sample of; None: it is that one. Not in the `repr`, whose
    # digest names runs.
    sample_of: str | None = field(default=None, repr=False)
    # What the answer must be, unless a run decodes without it. Not in the `repr` either.
    constraint: Constraint | ConstraintSpan | None = field(default=None, repr=False)
    # Fixed text and holes behind the prompt, in place of new tokens. Not in the `repr` either.
    template: Template | None = field(default=None, repr=False)

    @property
    def given(self) -> str | list[dict[str, str]]:
        """The model's input: text, or the messages of a chat."""
        messages = [{"role": role, "content": text} for role, text in self.turns]
        return messages or self.prompt


@dataclass(frozen=True)
class Judgement:
    """Whether an answer counts as right, and how that came about."""

    correct: bool | None  # None: not scored
    # JSON-ready; bools are scores, and so are floats, which are shares
    details: Mapping[str, Any] = field(default_factory=dict)
    extracted: bool | None = None  # whether the text states an answer; None: not looked for


@dataclass(frozen=True)
class TaskOptions(Options):
    """Options of a task; None takes the task's own."""

    data: Path | None = None  # JSON lines with the problems; None: the hub
    style: str | None = None  # of the prompt
    examples: Path | None = None  # JSON lines with solved problems; None: the hub
    shots: Shots | None = None  # solved problems in each prompt
    run_code: bool = False  # whether model-written code may be executed
    question_field: str | None = None  # of own data
    answer_field: str | None = None
    judge: str | None = None
    template: str | None = None  # of the prompt, with places such as {question}
    hole_tokens: str | None = None  # of problems that are templates

    @property
    def flags(self) -> list[str]:
        """The command-line names of the options that were set."""
        return [
            f"--{option.name.replace('_', '-')}"
            for option in fields(self)
            if getattr(self, option.name) != option.default
        ]


@dataclass(frozen=True)
class Task:
    """A stream of problems and the judge of their answers."""

    name: str
    description: str
    problems: Callable[[Split, int, int], Iterator[Problem]]
    judge: Callable[[Problem, str], Judgement | bool]
    options: Mapping[str, Any] = field(default_factory=dict)  # what decides the problems
    scored: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the record: shots, sandbox, ...
    repeats: bool = False  # whether problems with one prompt are several, as those of a data set
    # The task by the text behind its name's colon and by options; None: it has neither.
    select: Callable[[str, TaskOptions], Task] | None = None
    constrained: bool = False  # whether problems say what their answers must be
    laid_out: bool = False  # whether each problem has a template
    # The answer that a text states, in a form in which equal ones are equal; None: a text is no
    # such thing, and answers cannot be counted.
    stated: Callable[[Problem, str], str | None] | None = None

    def judgement(self, problem: Problem, text: str) -> Judgement:
        """Returns what the judge says of an answer."""
        found = self.judge(problem, text)
        return Judgement(found) if isinstance(found, bool) else found

    def is_correct(self, problem: Problem, text: str) -> bool:
        """Whether the judge takes an answer for right."""
        return self.judgement(problem, text).correct is True

    def take(self, count: int, split: Split = "test", seed: int = 0) -> list[Problem]:
        """Returns the first problems of a split, all different unless the task repeats some."""
        count = checked("limit", count, Count)
        different: dict[str, Problem] = {}
        for problem in self.problems(split, seed, 10 * count + 1000):  # a few come twice
            different.setdefault(problem.id if self.repeats else problem.prompt, problem)
            if len(different) == count:
                break
        return list(different.values())


@dataclass(frozen=True)
class ReadTask:
    """A task whose problems are a published data set."""

    name: str
    description: str
    source: str
    read: Callable[[TaskOptions], Task]

    def of(
        self,
        problems: Sequence[Problem],
        judge: Callable[[Problem, str], Judgement],
        style: str,
        notes: Mapping[str, Any],
        scored: bool = True,
    ) -> Task:
        """Returns the task with the problems that were read; a digest stands for all of them."""

        def stream(split: Split, seed: int, num: int) -> Iterator[Problem]:
            if split != "test":
                raise ValueError(f"split={split!r}: of {self.name} only the test split is read")
            return iter(problems[:num])

        held, text = any(problem.constraint for problem in problems), repr(problems)
        laid_out = any(problem.template for problem in problems)
        if held:
            text += described([problem.constraint for problem in problems])
        if laid_out:
            text += described([problem.template for problem in problems])
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Task(
            name=self.name,
            description=self.description,
            problems=stream,
            judge=judge,
            options={"style": style, "problems": digest},
            scored=scored,
            notes=notes,
            constrained=held,
            laid_out=laid_out,
        )


def choose(task: str, noun: str, name: str, known: Mapping[str, Choice]) -> Choice:
    """Returns what a task has under a name; raises ValueError that lists the known ones."""
    if name not in known:
        raise ValueError(f"unknown {noun} {name!r} of {task}: {nearest(name, known)}")
    return known[name]


def split_of(prompt: str) -> str:
    """Returns the split of a prompt by a hash of its text, so that splits never share one."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    return next(name for name, buckets in _BUCKETS.items() if bucket in buckets)


def draw(name: str, make: Maker, split: Split, seed: int, num: int) -> Iterator[Problem]:
    """Yields `num` problems of a split.

    The same seed gives the same problems; raises ValueError for an unknown split.
    """
    if split not in _BUCKETS:
        raise ValueError(f"split={split!r}: known: {', '.join(_BUCKETS)}")
    source = random.Random(f"{name}-{split}-{seed}")
    number = 0
    while number < num:
        prompt, response, answer = make(source)
        if split_of(prompt) == split:
            yield Problem(f"{name}-{split}-{seed}-{number}", prompt, response, answer)
            number += 1
