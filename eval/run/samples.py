"""Several samples of a problem, and pass@k: whether one of k samples is right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dllm.eval.run.results import Result
from dllm.eval.tasks.task import Problem
from dllm.settings import Settings

_MARK = "#"  # between a problem's id and the number of a sample


def sampled(problems: Sequence[Problem], count: int, settings: Settings) -> list[Problem]:
    """Returns every problem `count` times, with ids of their own, so with seeds of their own.

    The first sample has the problem's id: asking for more samples later goes on with those that
    are there. Raises ValueError where all samples would be the same.
    """
    if count < 1:
        raise ValueError(f"samples={count} must be at least 1")
    if count > 1 and settings.temperature == 0:
        raise ValueError(
            f"samples={count} at temperature=0 would all be the same: set --temperature above 0"
        )
    return [
        replace(problem, id=f"{problem.id}{_MARK}{number}") if number else problem
        for problem in problems
        for number in range(count)
    ]


def asked(problem: Problem) -> Problem:
    """Returns the problem that a sample is of, as the judge knows it."""
    return replace(problem, id=problem_id(problem.id))


def problem_id(sample_id: str) -> str:
    """Returns the id of the problem that a sample is of."""
    base, mark, number = sample_id.rpartition(_MARK)
    return base if mark and number.isdigit() else sample_id


def pass_at(samples: int, correct: int, k: int) -> float:
    """Returns the unbiased estimate of pass@k from `correct` of `samples` (2107.03374, eq. 1).

    1 - C(n - c, k) / C(n, k), as a product that does not overflow.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {correct} correct ones among {samples} samples is not defined: it takes "
            "0 <= correct <= samples and 1 <= k <= samples"
        )
    missed = 1.0  # 0 as soon as fewer than k are wrong: k is then one of the numbers
    for number in range(samples - correct + 1, samples + 1):
        missed *= 1 - k / number
    return 1 - missed


def passes(results: Iterable[Result]) -> dict[int, float]:
    """Returns the mean of pass@1 to pass@n over the problems; empty without several samples.

    n is the most samples that every problem has; those that were not scored do not count.
    """
    judged: dict[str, list[bool]] = {}
    for result in results:
        if result.correct is not None:
            judged.setdefault(problem_id(result.id), []).append(result.correct)
    fewest = min(map(len, judged.values()), default=0)
    if max(map(len, judged.values()), default=0) < 2:
        return {}
    return {
        k: sum(pass_at(len(s), sum(s), k) for s in judged.values()) / len(judged)
        for k in range(1, fewest + 1)
    }
