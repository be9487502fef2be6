"""Worlds of settings with known accuracies and costs, which answer without a model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dllm.eval.run.results import Result
from dllm.eval.tasks.task import Problem
from dllm.tuning.space import Choice, Space

SPACE = Space.of("forwards", ["threshold", "factor", "credit"], 64, 16, 32)
_CHEAPEST, _SAFE = 4.3, 6.5  # forwards of a problem at care 0 and 1


@dataclass(frozen=True)
class Truth:
    """What a setting is, in the long run."""

    accuracy: float
    cost: float  # forwards


@dataclass(frozen=True)
class World:
    """Answers problems so that care costs: options nearer to 1 are right more often, and slower.

    Each setting is better or worse than its care by a draw of its own, so that many crowd around a
    floor and a race has every occasion to be fooled.
    """

    seed: int

    def truth(self, choice: Choice) -> Truth:
        """Returns the accuracy and the cost of a setting."""
        if choice == SPACE.stepwise:
            return Truth(0.986, 34)
        draw = random.Random(f"{self.seed} {choice.label}")
        care = max(0.0, _care(choice) - 0.7) / 0.3
        right = min(0.99, 0.79 + 0.22 * care - 0.02 * (choice.block_length != 16))
        cost = _CHEAPEST + (_SAFE - _CHEAPEST) * care + 0.2 * (choice.scheduler != "threshold")
        return Truth(min(0.995, right + draw.gauss(0, 0.004)), max(3.0, cost + draw.gauss(0, 0.15)))

    def __call__(self, choice: Choice, asked: Sequence[Problem]) -> Iterator[Result]:
        truth = self.truth(choice)
        for one in asked:
            draw = random.Random(f"{self.seed} {choice.label} {one.id}").random
            more = draw() < truth.cost % 1
            yield answer(one.id, draw() < truth.accuracy, int(truth.cost) + more)


def _care(choice: Choice) -> float:
    options = dict(choice.options)
    if choice.scheduler == "factor":
        return 1 - float(options.get("factor") or 1.0) / 3
    return float(options.get("threshold") or 0.9)


def answer(name: str, right: bool, forwards: int) -> Result:
    """Returns an answer of which only these figures matter."""
    texts, counts = ("p", "t", "1"), (1, 1, 1, forwards, forwards)
    return Result("r", name, *texts, right, *counts, 1.0, 1.0, "eos", {})


def problems(name: str, count: int) -> list[Problem]:
    """Returns problems of which only the name matters."""
    return [Problem(f"{name}{n}", f"{name} {n}", "", "1") for n in range(count)]
