"""Which schedulers a plain threshold beats, and which nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dllm.eval.report.candidate import BASELINE, Contender, Outcome
from dllm.eval.run.summary import Summary, summarise

Kind = Literal[
    "baseline",
    "worse",  # some baseline has its accuracy and its tokens per forward
    "equal",  # both exactly those of a baseline
    "worse per row",  # the same where every variant of a row counts as a forward
    "not worse",
    "no baseline",
    "incomplete",
    "refused",
]
_TEXTS: dict[Kind, str] = {
    "worse": "worse than {}",
    "equal": "equal to {}",
    "worse per row": "worse per row than {}",
    "no baseline": "no {} to compare with",
    "incomplete": "incomplete: {}",
    "refused": "refused: {}",
}


@dataclass(frozen=True)
class Verdict:
    """How a contender stands beside the plain threshold on the same cache."""

    kind: Kind
    detail: str = ""  # the baseline that beats it, or a reason

    def __str__(self) -> str:
        return _TEXTS.get(self.kind, self.kind).format(self.detail)


@dataclass(frozen=True)
class Standing:
    """A line of the comparison."""

    contender: Contender
    summary: Summary | None  # None: nothing was measured
    verdict: Verdict
    on_front: bool  # no other contender has its accuracy and more speed, or its speed and more
    complete: bool


def dominates(one: Summary, other: Summary, *, per_row: bool = False) -> bool:
    """Whether one has at least the other's accuracy and at least its tokens per forward.

    With `per_row` every variant of a row counts as a forward of its own.
    """
    if per_row:
        faster = one.tokens_per_row_forward >= other.tokens_per_row_forward
    else:
        faster = one.tokens_per_forward >= other.tokens_per_forward
    return one.accuracy >= other.accuracy and faster


def judge(outcomes: Sequence[Outcome]) -> list[Standing]:
    """Returns how each contender stands among all of them, in their order."""
    summaries = [summarise(o.results) if o.results else None for o in outcomes]
    finished = [
        (outcome.contender, summary)
        for outcome, summary in zip(outcomes, summaries, strict=True)
        if summary is not None and outcome.complete
    ]
    return [
        Standing(
            contender=outcome.contender,
            summary=summary,
            verdict=_verdict(outcome, summary, finished),
            on_front=outcome.complete and summary is not None and _leads(summary, finished),
            complete=outcome.complete,
        )
        for outcome, summary in zip(outcomes, summaries, strict=True)
    ]


def _leads(summary: Summary, finished: Sequence[tuple[Contender, Summary]]) -> bool:
    return not any(
        dominates(other, summary) and not dominates(summary, other) for _, other in finished
    )


def _verdict(
    outcome: Outcome, summary: Summary | None, finished: Sequence[tuple[Contender, Summary]]
) -> Verdict:
    if outcome.refusal is not None:
        return Verdict("refused", outcome.refusal)
    if summary is None or not outcome.complete:
        return Verdict("incomplete", f"{len(outcome.results)} of {outcome.num_problems} problems")
    if outcome.contender.is_baseline:
        return Verdict("baseline")
    cache = outcome.contender.cache
    return _against(
        summary, [(c.text, s) for c, s in finished if c.is_baseline and c.cache == cache]
    )


def _against(summary: Summary, baselines: Sequence[tuple[str, Summary]]) -> Verdict:
    """Returns the verdict beside the baselines; of those that beat it, the fastest is named."""
    if not baselines:
        return Verdict("no baseline", BASELINE)
    fastest_first = sorted(baselines, key=lambda pair: -pair[1].tokens_per_forward)
    beaten_by = [(text, s) for text, s in fastest_first if dominates(s, summary)]
    for text, baseline in beaten_by:
        if not dominates(summary, baseline):
            return Verdict("worse", text)
    if beaten_by:
        return Verdict("equal", beaten_by[0][0])
    for text, baseline in fastest_first:
        if dominates(baseline, summary, per_row=True):
            return Verdict("worse per row", text)
    return Verdict("not worse")
