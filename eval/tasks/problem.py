"""A generated problem, and the split that it belongs to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]
DEFAULT_NUM = 1000  # problems of a stream, if not told otherwise
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

    @property
    def given(self) -> str | list[dict[str, str]]:
        """What the model is given: text, or the messages of a chat."""
        messages = [{"role": role, "content": text} for role, text in self.turns]
        return messages or self.prompt


@dataclass(frozen=True)
class Family:
    """A kind of problem: its name and a maker of (prompt, response, answer)."""

    name: str
    make: Callable[[random.Random], tuple[str, str, str]]


def split_of(prompt: str) -> str:
    """Returns the split of a prompt by a hash of its text, so that splits never share one."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 100
    return next(name for name, buckets in _BUCKETS.items() if bucket in buckets)


def draw(family: Family, split: Split, seed: int, num: int) -> Iterator[Problem]:
    """Yields `num` problems of a split.

    The same seed gives the same problems; raises ValueError for an unknown split.
    """
    if split not in _BUCKETS:
        raise ValueError(f"split={split!r}: known: {', '.join(_BUCKETS)}")
    source = random.Random(f"{family.name}-{split}-{seed}")
    number = 0
    while number < num:
        prompt, response, answer = family.make(source)
        if split_of(prompt) == split:
            yield Problem(f"{family.name}-{split}-{seed}-{number}", prompt, response, answer)
            number += 1
