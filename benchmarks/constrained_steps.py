"""What a constraint adds to each step of a decoding: its sets, logits held to them, and commits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import dllm
from dllm.constraints import Constraint
from dllm.decoding.languages.constrained import Constrained, Sets

SLOTS, BLOCK, STEPS = 128, 32, 64
_PARTS = {"sets": Constrained, "held": Sets, "settle": Sets}


def of_steps(constraint: Constraint, tokenizer: Any, size: int) -> dict[str, dict[str, float]]:
    """Returns milliseconds of CPU of a step, of the first one of a block, and of a later one.

    In all and by part: the mean of all steps, and the medians of both kinds, of a decoding of one
    row with logits drawn once, in blocks of 32, two commits a step.
    """
    running = dllm.stream(
        dllm.wrap(_drawn(size), vocab_size=size, tokenizer=tokenizer),
        [[0, 1, 2]],
        constraint=constraint,
        max_new_tokens=SLOTS,
        block_length=BLOCK,
        scheduler="fixed_quota",
        steps=STEPS,
        at_eos="ignore",
    )
    begun = -1
    found: dict[str, list[dict[str, float]]] = {"first": [], "later": []}
    with _timed() as taken:
        for event in running:
            start = int(event.columns[0, 0])
            found["later" if start == begun else "first"].append(dict(taken))
            begun = start
            taken.update(dict.fromkeys(taken, 0.0))
    medians = {moment: _over(steps, statistics.median) for moment, steps in found.items()}
    return {"mean": _over([*found["first"], *found["later"]], statistics.mean)} | medians


def _over(
    steps: list[dict[str, float]], typical: Callable[[list[float]], float]
) -> dict[str, float]:
    """Returns what is typical of some steps, in all and by part."""
    whole = {"all": typical([sum(one.values()) for one in steps])}
    return whole | {part: typical([one[part] for one in steps]) for part in _PARTS}


def _drawn(size: int) -> Callable[[Tensor], Tensor]:
    """Returns a model whose logits are the same at each step."""
    logits = torch.randn(SLOTS + BLOCK, size, generator=torch.Generator().manual_seed(0))
    return lambda tokens: logits[None, : tokens.shape[1]]


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    """Sums up the milliseconds that are spent in each part, while it is entered."""
    taken = dict.fromkeys(_PARTS, 0.0)

    def clocked(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            start = process_time()
            made = work(*given)
            taken[name] += 1e3 * (process_time() - start)
            return made

        return call

    patches = [
        patch.object(of, name, clocked(name, getattr(of, name))) for name, of in _PARTS.items()
    ]
    for one in patches:
        one.start()
    try:
        yield taken
    finally:
        for one in patches:
            one.stop()
