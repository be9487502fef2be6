"""The problems of a search, in three parts that share no prompt: raced on, named by, and unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.eval.tasks.task import Problem, Task

_ALL = 10**6  # more problems than any data set has
FEWEST = 32  # problems of a part, by which anything can be said


@dataclass(frozen=True)
class Sizes:
    """How many problems are wanted of each part, at most."""

    race: int = 512
    confirm: int = 1024
    unseen: int = 300


@dataclass(frozen=True)
class Parts:
    """Problems that settings race on, that decide which is named, and that measure the named."""

    race: Sequence[Problem]
    confirm: Sequence[Problem]
    unseen: Sequence[Problem]
    source: str  # where they come from, in words


def apart(task: Task, sizes: Sizes, seed: int) -> Parts:
    """Returns the problems of a task in three parts.

    A task that makes its problems has splits that share no prompt; of a data set, whose test split
    alone is read, a hash of the prompt says in which third a problem is, and a part may have fewer
    than are wanted. Raises ValueError where one has fewer than 32.
    """
    if not task.scored:
        raise ValueError(
            f"task {task.name!r} scores nothing without --run-code: nothing to tune by"
        )
    if task.options.get("problems") is None:  # not a data set that was read
        first = task.take(sizes.race + sizes.confirm, "validation", seed)
        own = first[: sizes.race], first[sizes.race :], task.take(sizes.unseen, "test", seed)
        parts = Parts(*own, f"validation and test, seed {seed}")
    else:
        thirds: list[list[Problem]] = [[], [], []]
        for one in task.take(_ALL):
            digest = hashlib.sha256(f"{seed} {one.prompt}".encode()).digest()
            thirds[digest[0] % 3].append(one)
        own = thirds[0][: sizes.race], thirds[1][: sizes.confirm], thirds[2][: sizes.unseen]
        parts = Parts(*own, f"thirds of the test split by a hash with seed {seed}")
    least = min(len(parts.race), len(parts.confirm), len(parts.unseen))
    if least < FEWEST:
        raise ValueError(
            f"task {task.name!r} has only {least} problems for a part of the search, which needs "
            f"{FEWEST} of each: take a task with more"
        )
    return parts


def digest_of(problems: Sequence[Problem]) -> str:
    """Returns sixteen digits that other problems change."""
    return hashlib.sha256(repr(list(problems)).encode()).hexdigest()[:16]
