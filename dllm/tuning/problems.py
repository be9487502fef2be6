"""The problems of a search, in two parts that share no prompt: tuned on, and unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.eval.tasks.task import Problem, Task

_ALL = 10**6  # more problems than any data set has


@dataclass(frozen=True)
class Parts:
    """Problems that decide, and problems that are measured once it is decided."""

    tuning: Sequence[Problem]
    unseen: Sequence[Problem]
    source: str  # where they come from, in words


def apart(task: Task, tuning: int, unseen: int, seed: int) -> Parts:
    """Returns the problems of a task in two parts.

    A task that makes its problems has splits that share no prompt; of a data set, whose test split
    alone is read, a hash of the prompt says on which side a problem is. Raises ValueError if it has
    too few.
    """
    if not task.scored:
        raise ValueError(
            f"task {task.name!r} scores nothing without --run-code: nothing to tune by"
        )
    if task.options.get("problems") is None:  # not a data set that was read
        first = task.take(tuning, "validation", seed)
        parts = Parts(first, task.take(unseen, "test", seed), f"validation and test, seed {seed}")
    else:
        sides: tuple[list[Problem], list[Problem]] = ([], [])
        for one in task.take(_ALL):
            digest = hashlib.sha256(f"{seed} {one.prompt}".encode()).digest()
            sides[digest[0] % 2].append(one)
        halves = f"halves of the test split by a hash with seed {seed}"
        parts = Parts(sides[0][:tuning], sides[1][:unseen], halves)
    for option, part, count in (("limit", parts.tuning, tuning), ("unseen", parts.unseen, unseen)):
        if len(part) < count:
            raise ValueError(
                f"--{option} {count}: {task.name!r} has {len(part)} such problems: ask for no more"
            )
    return parts


def digest_of(problems: Sequence[Problem]) -> str:
    """Returns sixteen digits that other problems change."""
    return hashlib.sha256(repr(list(problems)).encode()).hexdigest()[:16]
