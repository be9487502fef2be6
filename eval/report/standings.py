"""`dllm eval --schedulers`: schedulers on one task, and which of them a plain threshold beats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dllm import cache as caches
from dllm.constraints.written import title_of
from dllm.decoding.speculation import verifiers
from dllm.eval.ablation.lines import Candidate, Line, front
from dllm.eval.ablation.read import Entry
from dllm.eval.report.tables import NUMBERS, Table, accuracy, tolls, with_tolls
from dllm.eval.run.describe import short
from dllm.eval.run.run import Run
from dllm.eval.run.summary import Summary
from dllm.eval.tasks.task import Problem

BASELINE = "threshold"  # what every other scheduler has to be better than
HEADS = (
    *("scheduler", "accuracy (95 %)", "tokens/forward", "forwards", "row forwards"),
    "beside threshold",
)
LEGEND = (
    "Worse: a setting of `threshold` has at least that accuracy and at least those tokens per "
    "forward; worse per row: the same where every variant of a row counts as a forward. Both "
    "compare the measured values, whose intervals are beside them. Forwards are those of one "
    "problem, row forwards with every variant; an asterisk marks the Pareto front."
)


@dataclass(frozen=True)
class Contender(Candidate):
    """A scheduler's setting with the cache that it runs on."""

    run: Run
    cache: str
    file: str  # of its results, in the comparison's folder


def contender(
    number: int, entry: Entry, run: Run, problems: Sequence[Problem], *, names_cache: bool
) -> Contender:
    """Returns an entry with the run that measures it; several caches have to be named."""
    described = run.describe()
    cache = short(described["cache"], caches.registry)
    suffix = f" / {cache}" if names_cache else ""
    name = entry.text if cache == "none" else f"{entry.text}+{cache}"
    return Contender(
        number=number,
        name=f"{entry.text}{suffix}",
        curve=f"{entry.label}{suffix}",
        mark=entry.setting or f"{entry.label}{suffix}",
        subject=(run.model.name, run.task.name),
        problems=problems,
        run=run,
        cache=cache,
        is_baseline=described["scheduler"]["name"] == BASELINE,
        file=re.sub(r"[^\w.,=@+-]+", "-", name) + ".jsonl",
    )


def heading(run: Run, num_problems: int, blocks: Sequence[int] = ()) -> str:
    """Returns what was measured: task, problems, model, lengths, and what else there is of it.

    `blocks` are the block lengths of several runs; empty: the run's own.
    """
    listed = ", ".join(map(str, blocks or (run.block_length,)))
    verifier = run.describe().get("verifier")
    verified = f", verifier {short(verifier, verifiers.registry)}" if verifier else ""
    held = run.settings.constraint
    constrained = "" if held is None else f", held to {title_of(held)}"
    constrained = ", each held to its constraint" if run.holds else constrained
    return (
        f"{run.task.name}: {num_problems} held-out problems, {run.model.name}, "
        f"{run.settings.max_new_tokens} new tokens, blocks of {listed}, "
        f"batch {run.num_rows}{verified}{constrained}"
    )


def judge(lines: Sequence[Line[Contender]]) -> list[str]:
    """Returns how each line stands beside the baselines on its cache, or why nobody knows."""
    measured = [line for line in lines if line.candidate.is_baseline and line.compares]
    fastest_first = sorted(measured, key=lambda line: -line.measured.tokens_per_forward)
    return [_verdict(line, fastest_first) for line in lines]


def _verdict(line: Line[Contender], fastest_first: Sequence[Line[Contender]]) -> str:
    """Returns the verdict beside the baselines; of those that beat a line, the fastest is named."""
    if not line.compares:
        return line.state
    if line.candidate.is_baseline:
        return "baseline"
    cache, summary = line.candidate.cache, line.measured
    baselines = [other for other in fastest_first if other.candidate.cache == cache]
    if not baselines:
        return f"no {BASELINE} to compare with"
    beaten_by = [other for other in baselines if dominates(other.measured, summary)]
    for other in beaten_by:
        if not dominates(summary, other.measured):
            return f"worse than {other.name}"
    if beaten_by:
        return f"equal to {beaten_by[0].name}"
    for other in baselines:
        if dominates(other.measured, summary, per_row=True):
            return f"worse per row than {other.name}"
    return "not worse"


def dominates(one: Summary, other: Summary, *, per_row: bool = False) -> bool:
    """Whether one has at least the other's accuracy and at least its tokens per forward.

    With `per_row` every variant of a row counts as a forward of its own.
    """
    speed = "tokens_per_row_forward" if per_row else "tokens_per_forward"
    return one.accuracy >= other.accuracy and getattr(one, speed) >= getattr(other, speed)


def records(lines: Sequence[Line[Contender]]) -> list[dict[str, Any]]:
    """Returns each line as JSON-ready values; None for what was not measured."""
    leaders = front(lines)
    numbers = [{} if line.summary is None else asdict(line.summary) for line in lines]
    return [
        {
            "label": line.curve,
            "scheduler": line.name,
            "cache": line.candidate.cache,
            **{name: known.get(name) for name in NUMBERS},
            **tolls(line.summary),
            "verdict": verdict,
            "on_front": line.number in leaders,
        }
        for line, known, verdict in zip(lines, numbers, judge(lines), strict=True)
    ]


def table(title: str, lines: Sequence[Line[Contender]]) -> Table:
    """Returns one row a contender: accuracy, speed, and how it stands beside the threshold."""
    leaders, rows = front(lines), []
    for line, verdict in zip(lines, judge(lines), strict=True):
        name, known = line.name + (" *" if line.number in leaders else ""), line.summary
        figures = ["-"] * 4
        if known is not None:
            figures = [accuracy(known), f"{known.tokens_per_forward:.2f}"]
            figures += [f"{known.forwards:.1f}", f"{known.row_forwards:.1f}"]
        rows.append((name, *figures, verdict))
    return with_tolls(Table(title, HEADS, rows, LEGEND), [line.summary for line in lines])
