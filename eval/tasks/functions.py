"""Tiny Python functions of one argument, described operation by operation."""

from __future__ import annotations

import random
from collections.abc import Iterator

from dllm.eval.tasks.task import DEFAULT_NUM, Problem, Split, Task, draw

MOST_OPERATIONS = 5


def problems(split: Split = "test", seed: int = 0, num: int = DEFAULT_NUM) -> Iterator[Problem]:
    """Yields function problems of a split."""
    return draw("functions", _make, split, seed, num)


def extract(text: str) -> str | None:
    """Returns the source up to its last line that is not blank, None if nothing was written."""
    return text.rstrip() or None


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a text is exactly the source asked for; nothing is executed."""
    return extract(text) == problem.answer


TASK = Task("functions", "tiny Python functions", problems, is_correct)


def _make(source: random.Random) -> tuple[str, str, str]:
    words, lines = [], []
    for _ in range(source.randint(1, MOST_OPERATIONS)):
        word, line = _operation(source.randint(2, 20), source)
        words.append(word)
        lines.append(f"    x = {line}")
    code = "\n".join(["def f(x):", *lines, "    return x"])
    return f"write f(x): {', '.join(words)}.", code, code


def _operation(number: int, source: random.Random) -> tuple[str, str]:
    return source.choice(
        (
            (f"add {number}", f"x + {number}"),
            (f"subtract {number}", f"x - {number}"),
            (f"multiply by {number}", f"x * {number}"),
            (f"divide by {number}", f"x // {number}"),
            ("square", "x * x"),
            ("negate", "-x"),
            (f"at least {number}", f"max(x, {number})"),
            (f"at most {number}", f"min(x, {number})"),
        )
    )
