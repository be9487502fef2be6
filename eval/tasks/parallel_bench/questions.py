"""The benchmark's stream of problems, and the judge of their answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from dllm.eval.tasks.judgement import Judgement
from dllm.eval.tasks.parallel_bench.families import FAMILIES
from dllm.eval.tasks.parallel_bench.instance import Instance
from dllm.eval.tasks.parallel_bench.selection import Selection
from dllm.eval.tasks.problem import Problem, Split, split_of

_TASK, _ANSWER = "Task:", "Answer:"


@dataclass(frozen=True)
class Question(Problem):
    """A problem that knows what is right; `answer` is one of its right answers."""

    family: str = field(kw_only=True)
    instance: Instance = field(kw_only=True)


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


def _of_family(selection: Selection, family: str, split: Split, seed: int) -> Iterator[Question]:
    asked = _instances(selection, family, split, random.Random(f"{family}-{split}-{seed}"))
    solved = _instances(selection, family, "train", random.Random(f"{family}-solved-{seed}"))
    for number, instance in enumerate(asked):
        others = (other for other in solved if other.question != instance.question)
        examples = [(e.question, e.response) for e in islice(others, selection.shots)]
        chat = selection.style == "chat"
        yield Question(
            id=f"{family}-{split}-{seed}-{number}",
            prompt=_text(examples, instance.question),
            response=instance.response,
            answer=instance.response,
            turns=_turns(examples, instance.question) if chat else (),
            family=family,
            instance=instance,
        )


def _instances(
    selection: Selection, family: str, split: Split, source: random.Random
) -> Iterator[Instance]:
    while True:
        num_names = source.randint(selection.shortest, selection.longest)
        instance = FAMILIES[family](source, num_names)
        if split_of(instance.question) == split:
            yield instance


def _text(examples: list[tuple[str, str]], question: str) -> str:
    solved = [f"{_TASK} {asked}\n{_ANSWER}\n{answer}" for asked, answer in examples]
    return "\n\n".join([*solved, f"{_TASK} {question}\n{_ANSWER}\n"])


def _turns(examples: list[tuple[str, str]], question: str) -> tuple[tuple[str, str], ...]:
    pairs = [(("user", asked), ("assistant", answer)) for asked, answer in examples]
    return (*(turn for pair in pairs for turn in pair), ("user", question))
