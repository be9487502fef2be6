"""How often the length of a gap is found, by what the lengths of a hole could be compared by.

    python -m benchmarks.hole_lengths

Gaps of one to seven tokens are cut into answers to the embedded model's tasks, and the lengths 1 to
8 are tried, one token a step. `score` is what decides in `template=`; `commit` are confidences at
commit, and `first` is one pass with all tokens of the hole masked.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import torch
import typer

import dllm
from benchmarks.machine import machine, write
from benchmarks.options import Output
from dllm.constraints import Hole, Template
from dllm.eval.tasks import arithmetic, functions, lists

LENGTHS = range(1, 9)
LONGEST_GAP = 7
PADDING = 24  # end tokens behind an answer, as the model was trained


def main(
    problems: Annotated[int, typer.Option(help="Problems of each task.")] = 40,
    output: Output = None,
) -> None:
    """Counts how often each way finds the length that was cut out."""
    model, found = dllm.load("tiny"), []
    for family in (arithmetic, lists, functions):
        counts: Counter[str] = Counter()
        for before, length, after in gaps(model, family, problems):
            counts["gaps"] += 1
            counts.update(name for name, best in lengths(model, before, after) if best == length)
        found.append({"task": family.__name__.rpartition(".")[2], **counts})
    write({"machine": machine("cpu"), "tasks": found}, output)


def gaps(model: Any, family: Any, problems: int) -> Iterator[tuple[list[int], int, str]]:
    """Yields what stands before a gap, its length and what stands behind it."""
    source = random.Random(0)
    for problem in islice(family.problems("test", seed=0), problems):
        prompt, answer = (model.tokenizer.encode(one) for one in (problem.prompt, problem.response))
        length = source.randint(1, LONGEST_GAP)
        if len(answer) >= length + 2:
            at = source.randrange(len(answer) - length)
            behind = [*answer[at + length :], *[model.spec.eos_token_ids[0]] * PADDING]
            yield prompt + answer[:at], length, model.tokenizer.decode(behind)


def lengths(model: Any, before: list[int], after: str) -> Iterator[tuple[str, int]]:
    """Yields the length that each way finds best."""
    running = dllm.stream(
        model,
        [before],
        template=Template(Hole(tokens=LENGTHS), after),
        scheduler="fixed_quota:tokens_per_step=1",
    )
    first: torch.Tensor | None = None
    for event in running:
        first = event.confidence if first is None else first
    canvas, tried = running.canvas, running.output.tried[0]
    assert first is not None
    yield "score", max(tried, key=lambda one: one.score).lengths[0]
    start = len(before)
    commit = [canvas.commit_confidence[row, start : start + n] for row, n in enumerate(LENGTHS)]
    yield "commit", _best(commit)
    yield "first", _best([first[row, :n] for row, n in enumerate(LENGTHS)])


def _best(confidences: list[torch.Tensor]) -> int:
    """Returns the length with the largest mean log probability."""
    means = torch.stack([one.log().mean() for one in confidences])
    return LENGTHS[int(means.argmax())]


if __name__ == "__main__":
    typer.run(main)
