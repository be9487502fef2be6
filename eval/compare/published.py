"""Figures that authors published for a setting, and whether a measurement agrees with them."""

from __future__ import annotations

from dataclasses import dataclass

from dllm.eval.run.summary import Summary, wilson

FULL = {"gsm8k": 1319, "humaneval": 164}  # problems of the test splits that papers report


@dataclass(frozen=True)
class Published:
    """Figures of a paper or repository for one setting."""

    source: str  # where they stand
    accuracy: float | None = None  # in %; None: not published, or not known, as `because` says
    tokens_per_second: float | None = None  # on the authors' hardware, by their way of counting
    tokens_per_forward: float | None = None
    problems: int | None = None  # None: the task's whole test split
    score: str = ""  # of the scores that the judge keeps; empty: the accuracy of the report
    differs: str = ""  # what of the authors' protocol this project does not have
    because: str = ""  # why there is no accuracy

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            text = key in ("source", "score", "differs", "because")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (isinstance(value, str) if text else number):
                raise ValueError(
                    f"published: {key}={value!r} must be {'text' if text else 'a number'}"
                )
        if not self.source:
            raise ValueError("published figures need a 'source'")
        if self.accuracy is None and not self.because:
            raise ValueError("published without an accuracy needs 'because', the reason")
        if self.accuracy is not None and not 0 <= self.accuracy <= 100:
            raise ValueError(f"accuracy={self.accuracy} must be a percentage, 0 to 100")

    def tolerance(self, problems: int) -> tuple[float, float]:
        """Returns the 95 % Wilson interval, in %, of the accuracy on that many problems."""
        assert self.accuracy is not None
        low, high = wilson(round(self.accuracy / 100 * problems), problems)
        return 100 * low, 100 * high


@dataclass(frozen=True)
class Agreement:
    """How a measurement stands beside what was published."""

    text: str
    inside: bool | None = None  # None: the two cannot be compared


def agreement(
    published: Published | None, summary: Summary | None, task: str, changed: str = ""
) -> Agreement:
    """Returns whether a summary lies inside the tolerance, or why that says nothing.

    `changed` names what a command line replaced of the configuration's setting.
    """
    if published is None:
        return Agreement("")
    if published.accuracy is None:
        return Agreement(f"not published: {published.because}")
    if published.differs:
        return Agreement(f"not comparable: {published.differs}")
    if changed:
        return Agreement(f"not comparable: {changed} is not the configuration's")
    if summary is None or not summary.scored:
        return Agreement("not measured" if summary is None else "not scored")
    whole = published.problems or FULL.get(task)
    if whole is None:
        return Agreement(f"not comparable: 'problems' does not say how many {task} has")
    if summary.scored != whole:
        return Agreement(f"limited run: {summary.scored:,} of {whole:,} problems")
    if published.score and published.score not in summary.scores:
        return Agreement(f"not comparable: {task} has no score {published.score!r}")
    measured = summary.scores[published.score] if published.score else summary.accuracy
    low, high = published.tolerance(whole)
    inside = low <= 100 * measured <= high
    return Agreement(f"{'inside' if inside else 'outside'} {low:.1f}-{high:.1f}", inside)
