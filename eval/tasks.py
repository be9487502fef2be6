"""The tasks that `dllm eval` knows: where problems come from and what counts as right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from dllm.eval import arithmetic, functions, lists
from dllm.eval.problem import Problem, Split
from dllm.registry import nearest


@dataclass(frozen=True)
class Task:
    """A stream of problems and the judge of their answers."""

    name: str
    description: str
    problems: Callable[[Split, int, int], Iterator[Problem]]
    is_correct: Callable[[Problem, str], bool]

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


TASKS = {
    task.name: task
    for task in (
        Task("arithmetic", "word problems", arithmetic.problems, arithmetic.is_correct),
        Task("lists", "list operations", lists.problems, lists.is_correct),
        Task("functions", "tiny Python functions", functions.problems, functions.is_correct),
    )
}


def find_task(name: str) -> Task:
    """Returns a task by name; raises ValueError that lists the known ones."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: {nearest(name, TASKS)}")
    return TASKS[name]
