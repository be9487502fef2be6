"""List operations on three to eight items: copy, reverse, sort, replace and remove."""

from __future__ import annotations

import random
from collections.abc import Iterator

from dllm.eval.tasks.arithmetic import NAMES
from dllm.eval.tasks.task import DEFAULT_NUM, Problem, Split, Task, draw

SHORTEST, LONGEST = 3, 8


def problems(split: Split = "test", seed: int = 0, num: int = DEFAULT_NUM) -> Iterator[Problem]:
    """Yields list problems of a split."""
    return draw("lists", _make, split, seed, num)


def extract(text: str) -> str | None:
    """Returns the list as it was written, None if nothing was."""
    return text.strip() or None


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a text is the list asked for."""
    return extract(text) == problem.answer


def stated(problem: Problem, text: str) -> str | None:
    """Returns the list that a text is."""
    return extract(text)


TASK = Task("lists", "list operations", problems, is_correct, stated=stated)


def _make(source: random.Random) -> tuple[str, str, str]:
    task = source.choice(("copy", "reverse", "sort", "replace", "remove"))
    known = [str(digit) for digit in range(10)] if task == "sort" else list(NAMES)
    items = [source.choice(known) for _ in range(source.randint(SHORTEST, LONGEST))]
    chosen, other = source.choice(items), source.choice(known)
    if task in ("replace", "remove") and len(set(items)) == 1:
        task = "copy"
    head = {"replace": f"replace {chosen} with {other}", "remove": f"remove {chosen}"}
    results = {
        "copy": items,
        "reverse": items[::-1],
        "sort": sorted(items),
        "replace": [other if item == chosen else item for item in items],
        "remove": [item for item in items if item != chosen],
    }
    answer = ", ".join(results[task])
    return f"{head.get(task, task)}: {', '.join(items)}.", answer, answer
