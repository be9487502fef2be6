"""The tasks that `dllm eval` knows: where problems come from and what counts as right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from dllm.eval.sandbox import open_sandbox
from dllm.eval.tasks import gsm8k, humaneval
from dllm.eval.tasks.judgement import Judgement
from dllm.eval.tasks.made import arithmetic, functions, lists
from dllm.eval.tasks.options import TaskOptions
from dllm.eval.tasks.parallel_bench import questions
from dllm.eval.tasks.parallel_bench.selection import Selection, select
from dllm.eval.tasks.problem import Problem, Split
from dllm.registry import nearest


@dataclass(frozen=True)
class Task:
    """A stream of problems and the judge of their answers."""

    name: str
    description: str
    problems: Callable[[Split, int, int], Iterator[Problem]]
    is_correct: Callable[[Problem, str], bool]
    judge: Callable[[Problem, str], Judgement] | None = None  # who says more than right or wrong
    options: Mapping[str, Any] = field(default_factory=dict)  # what decides the problems
    scored: bool = True
    notes: Mapping[str, Any] = field(default_factory=dict)  # for the record: shots, sandbox, ...

    def judgement(self, problem: Problem, text: str) -> Judgement:
        """Returns what the judge says of an answer."""
        if self.judge is not None:
            return self.judge(problem, text)
        return Judgement(self.is_correct(problem, text))

    def take(self, count: int, split: Split = "test", seed: int = 0) -> list[Problem]:
        """Returns the first problems of a split, all different."""
        if count < 1:
            raise ValueError(f"limit={count} must be at least 1")
        different: dict[str, Problem] = {}
        for problem in self.problems(split, seed, 10 * count + 1000):  # a few come twice
            different.setdefault(problem.prompt, problem)
            if len(different) == count:
                break
        return list(islice(different.values(), count))


def _parallel_bench(selection: Selection) -> Task:
    return Task(
        name="parallel_bench",
        description="lists and grids whose tokens depend on each other (arXiv 2510.04767)",
        problems=partial(questions.problems, selection),
        is_correct=lambda problem, text: questions.judge(problem, text).correct is True,
        judge=questions.judge,
        options=selection.describe(),
        notes={"shots": selection.shots},
    )


TASKS = {
    task.name: task
    for task in (
        Task("arithmetic", "word problems", arithmetic.problems, arithmetic.is_correct),
        Task("lists", "list operations", lists.problems, lists.is_correct),
        Task("functions", "tiny Python functions", functions.problems, functions.is_correct),
        _parallel_bench(Selection()),
    )
}


def _read_gsm8k(options: TaskOptions) -> Task:
    style = gsm8k.find_style(options.style)
    judge = partial(gsm8k.judge, style)
    decides = {"style": options.style or gsm8k.DEFAULT_STYLE}
    shots = style.shots if options.shots is None else options.shots
    task = _read("gsm8k", gsm8k.problems(options), judge, decides)
    return replace(task, notes={"shots": shots})


def _read_humaneval(options: TaskOptions) -> Task:
    style, data = humaneval.find_style(options.style), humaneval.read(options)
    judge = humaneval.Judge(style, data, open_sandbox() if options.run_code else None)
    decides = {"style": options.style or humaneval.DEFAULT_STYLE}
    task = _read("humaneval", humaneval.problems(style, data), judge, decides)
    level = None if judge.sandbox is None else judge.sandbox.level
    return replace(task, scored=options.run_code, notes={"shots": 0, "sandbox": level})


def _read(
    name: str,
    problems: Sequence[Problem],
    judge: Callable[[Problem, str], Judgement],
    decides: Mapping[str, Any],
) -> Task:
    """Returns a task with problems that are there already; a digest stands for all of them."""

    def stream(split: Split, seed: int, num: int) -> Iterator[Problem]:
        if split != "test":
            raise ValueError(f"split={split!r}: of {name} only the test split is read")
        return iter(problems[:num])

    digest = hashlib.sha256(repr(problems).encode()).hexdigest()[:12]
    return Task(
        name=name,
        description=READ[name].description,
        problems=stream,
        is_correct=lambda problem, text: judge(problem, text).correct is True,
        judge=judge,
        options={**decides, "problems": digest},
    )


@dataclass(frozen=True)
class ReadTask:
    """A task whose problems are a published data set."""

    description: str
    source: str
    read: Callable[[TaskOptions], Task]


READ = {
    "gsm8k": ReadTask("grade-school word problems", "arXiv 2110.14168", _read_gsm8k),
    "humaneval": ReadTask("Python functions", "arXiv 2107.03374", _read_humaneval),
}


def find_task(name: str, options: TaskOptions | None = None) -> Task:
    """Returns a task by name; raises ValueError that lists the known ones."""
    options = options or TaskOptions()
    if name in READ:
        return READ[name].read(options)
    base, _, chosen = name.partition(":")
    if base == "parallel_bench":
        return _parallel_bench(select(chosen, options))
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: {nearest(name, [*TASKS, *READ])}")
    if options.given:
        raise ValueError(
            f"{', '.join(options.given)}: the task {name!r} makes its own problems; only "
            f"{', '.join(READ)} and, for two of them, parallel_bench have these options"
        )
    return TASKS[name]
