"""HEX: of several answers to a problem, decoded in blocks of other lengths, the most frequent."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dllm.eval.run.results import Result, asked
from dllm.eval.tasks.task import Problem, Task

_MOST = 32  # decodings of a problem
_FORM = re.compile(r"block_length=(\d{1,9}(?:,\d{1,9})+)")
# Of all decodings together; the rest of a result is that of the one that won.
_SUMS = ("forwards", "row_forwards", "raw_tokens", "tokens_fed", "seconds")
_SUMS_OR_NONE = ("flops", "prefill_seconds", "latency", "rows_fed", "steps", "constraint_seconds")


def read_vote(text: str, task: Task) -> tuple[int, ...]:
    """Returns the block lengths of a vote; raises ValueError for another form or task."""
    found = _FORM.fullmatch(text.replace(" ", ""))
    lengths = tuple(map(int, found[1].split(","))) if found else ()
    if not 1 < len(set(lengths)) == len(lengths) <= _MOST or 0 in lengths:
        raise ValueError(
            f"vote={text!r} must be block_length= with 2 to {_MOST} different lengths between "
            "commas, as in block_length=8,16,32"
        )
    if task.stated is None:
        raise ValueError(
            f"vote={text!r}: texts of the task {task.name!r} state no answer of which two can be "
            "the same, so there is nothing to count (a Task of your own says what, with `stated`): "
            "leave the vote out"
        )
    return lengths


def majority(stated: Sequence[str | None]) -> tuple[int, bool]:
    """Returns which decoding is the first with the most frequent answer, and whether others tie.

    Those without an answer do not vote; where none has any, the first one wins. Of answers that
    are as frequent the one that comes first wins, as in the authors' evaluation (junos-ai-org/hex
    HEX/eval/HEX.py); what they analyse recorded runs with has another rule, the least negative
    log-likelihood.
    """
    counts = Counter(answer for answer in stated if answer is not None)
    if not counts:
        return 0, False
    (winner, most), *others = counts.most_common()  # equal ones as they came
    return stated.index(winner), any(count == most for _, count in others)


def voted(
    task: Task, problems: Sequence[Problem], runs: Sequence[Sequence[Result]]
) -> list[Result]:
    """Returns a result for each problem: the winner's, with the cost of all decodings.

    `runs` are those of each block length, in the order of the vote, with a result for each
    problem in the order of the problems.
    """
    return [
        _voted(task, asked(problem), results)
        for problem, results in zip(problems, zip(*runs, strict=True), strict=True)
    ]


def _voted(task: Task, problem: Problem, results: Sequence[Result]) -> Result:
    assert task.stated is not None
    stated = [task.stated(problem, result.text) for result in results]
    place, tied = majority(stated)
    winner = results[place]
    sums: dict[str, Any] = {n: _sum(getattr(r, n) for r in results) for n in _SUMS + _SUMS_OR_NONE}
    lengths = [result.settings.get("block_length") for result in results]
    told = dict(zip(map(str, lengths), stated, strict=True))
    details = {**winner.details, "votes": told, "tied": tied}
    peak = [r.peak_memory for r in results if r.peak_memory is not None]
    settings: Mapping[str, Any] = {**winner.settings, "block_length": lengths}
    shown: dict[str, Any] = {"details": details, "settings": dict(settings)}
    shown["peak_memory"] = max(peak, default=None)
    return replace(winner, **sums, **shown)


def _sum(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    if len(known) < len(listed):
        return None
    return sum(known) if all(isinstance(value, int) for value in known) else math.fsum(known)
