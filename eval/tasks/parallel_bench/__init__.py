"""ParallelBench (2510.04767): lists and grids whose tokens depend on each other, and its limits.

Questions and wording are this project's own; what is asked and how it is scored is the paper's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from dllm.eval.tasks.parallel_bench import grid, waiting_line
from dllm.eval.tasks.parallel_bench.instance import Instance
from dllm.eval.tasks.task import (
    Judgement,
    Problem,
    Shots,
    Split,
    Task,
    TaskOptions,
    choose,
    split_of,
)
from dllm.options import CountOrNone, Options

STYLES = {"plain": False, "chat": True}  # whether prompts are chats
FEWEST_NAMES = 2  # one name has no other order
MOST_NAMES = len(waiting_line.NAMES) - 1  # somebody has to be left to join the line
_TASK, _ANSWER = "Task:", "Answer:"
# Makers of an instance from a source of randomness and the number of names in a line.
FAMILIES: dict[str, Callable[[random.Random, int], Instance]] = {
    **{name: partial(waiting_line.make, operation=name) for name in waiting_line.OPERATIONS},
    "latin_square": lambda source, _: grid.latin_square(source),
    "sudoku": lambda source, _: grid.sudoku(source),
}


@dataclass(frozen=True)
class Selection(Options):
    """Families, lengths of lines, and the shape of prompts."""

    families: tuple[str, ...] = tuple(FAMILIES)
    shortest: CountOrNone = 3  # names in a line
    longest: CountOrNone = 6
    style: str = "plain"
    shots: Shots = 1  # solved questions of the same family in each prompt

    def __post_init__(self) -> None:
        for family in self.families:
            choose("parallel_bench", "family", family, FAMILIES)
        choose("parallel_bench", "style", self.style, STYLES)
        if not FEWEST_NAMES <= self.shortest <= self.longest <= MOST_NAMES:
            raise ValueError(
                f"names={self.shortest}-{self.longest} must lie between {FEWEST_NAMES} and "
                f"{MOST_NAMES}, the smaller number first"
            )

    def describe(self) -> dict[str, Any]:
        """Returns what decides the questions, as JSON-ready values."""
        return {
            "families": list(self.families),
            "names": [self.shortest, self.longest],
            "style": self.style,
            "shots": self.shots,
        }


@dataclass(frozen=True)
class Question(Problem):
    """A problem that knows what is right; `answer` is one of its right answers."""

    family: str = field(kw_only=True)
    instance: Instance = field(kw_only=True)


def select(text: str, options: TaskOptions) -> Selection:
    """Returns what stands behind the task's name, `family,...,names=3-6`, with the options.

    No family stands for all of them; `names=15` for lines of that length alone.
    """
    refused = [flag for flag in options.flags if flag not in ("--style", "--shots")]
    if refused:
        raise ValueError(
            f"{', '.join(refused)}: parallel_bench makes its own problems; it has --style, "
            "--shots and, as in parallel_bench:shuffle,names=3-6, families and lengths"
        )
    items = [item.strip() for item in text.split(",") if item.strip()]
    lengths = [item for item in items if "=" in item]
    shortest, longest = _lengths(lengths) if lengths else (Selection.shortest, Selection.longest)
    return Selection(
        families=tuple(dict.fromkeys(i for i in items if "=" not in i)) or Selection.families,
        shortest=shortest,
        longest=longest,
        style=Selection.style if options.style is None else options.style,
        shots=Selection.shots if options.shots is None else options.shots,
    )


def problems(selection: Selection, split: Split, seed: int, num: int) -> Iterator[Question]:
    """Yields problems of a split, the families in turn, so that each has the same share.

    The split is that of the bare question; solved questions in prompts are of the train split.
    """
    streams = [_of_family(selection, family, split, seed) for family in selection.families]
    return islice((question for turn in zip(*streams, strict=True) for question in turn), num)


def judge(problem: Problem, text: str) -> Judgement:
    """Returns the loose score, which counts, the strict one, and the loose one of the family."""
    assert isinstance(problem, Question)
    if not problem.turns:
        text = text.partition(_TASK)[0]  # where a base model goes on with a question of its own
    verdict = problem.instance.verdict(text)
    details = {
        "strict": verdict.strict,
        "loose": verdict.loose,
        problem.family: verdict.loose,
        "read_as": None if verdict.answer is None else list(verdict.answer),
    }
    return Judgement(verdict.loose, details, extracted=verdict.answer is not None)


def task_of(selection: Selection) -> Task:
    """Returns the task that asks the selected questions."""
    return Task(
        name="parallel_bench",
        description="lists and grids whose tokens depend on each other (arXiv 2510.04767)",
        problems=partial(problems, selection),
        judge=judge,
        options=selection.describe(),
        notes={"shots": selection.shots},
        select=lambda text, options: task_of(select(text, options)),
    )


TASK = task_of(Selection())


def _of_family(selection: Selection, family: str, split: Split, seed: int) -> Iterator[Question]:
    asked = _instances(selection, family, split, random.Random(f"{family}-{split}-{seed}"))
    solved = _instances(selection, family, "train", random.Random(f"{family}-solved-{seed}"))
    for number, instance in enumerate(asked):
        others = (other for other in solved if other.question != instance.question)
        examples = [(e.question, e.response) for e in islice(others, selection.shots)]
        yield Question(
            id=f"{family}-{split}-{seed}-{number}",
            prompt=_text(examples, instance.question),
            response=instance.response,
            answer=instance.response,
            turns=_turns(examples, instance.question) if STYLES[selection.style] else (),
            family=family,
            instance=instance,
        )


def _instances(
    selection: Selection, family: str, split: Split, source: random.Random
) -> Iterator[Instance]:
    while True:
        instance = FAMILIES[family](source, source.randint(selection.shortest, selection.longest))
        if split_of(instance.question) == split:
            yield instance


def _text(examples: list[tuple[str, str]], question: str) -> str:
    solved = [f"{_TASK} {asked}\n{_ANSWER}\n{answer}" for asked, answer in examples]
    return "\n\n".join([*solved, f"{_TASK} {question}\n{_ANSWER}\n"])


def _turns(examples: list[tuple[str, str]], question: str) -> tuple[tuple[str, str], ...]:
    pairs = [(("user", asked), ("assistant", answer)) for asked, answer in examples]
    return (*(turn for pair in pairs for turn in pair), ("user", question))


def _lengths(items: list[str]) -> tuple[int, int]:
    found = re.fullmatch(r"names\s*=\s*(\d+)(?:\s*-\s*(\d+))?", items[0])
    if found is None or len(items) > 1:
        raise ValueError(
            f"parallel_bench:{','.join(items)}: the only option is names: write a length "
            "once, as names=15 or names=3-6"
        )
    return int(found[1]), int(found[2] or found[1])
