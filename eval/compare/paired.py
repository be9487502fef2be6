"""Two runs of results files on the same problems: where one is right, and whether by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dllm.eval.run.describe import label_of
from dllm.eval.run.results import Result, read_lines
from dllm.eval.run.summary import NORMAL_95, Summary, summarise
from dllm.reading import brief

Results = Mapping[str, Result]  # by problem id
_LONGEST = 80  # characters of a constraint in a label


@dataclass(frozen=True)
class Counts:
    """How many problems each of two methods has right."""

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.only_first, self.only_second, self.neither) < 0 or not self.total:
            raise ValueError(f"{self} must count at least one problem, none of them below 0")

    @property
    def total(self) -> int:
        """All problems."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def discordant(self) -> int:
        """Those that one has right and the other wrong: all that a comparison can go by."""
        return self.only_first + self.only_second

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second."""
        return (self.only_first - self.only_second) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference, Wald's with half a problem added to each cell.

        Source: Agresti and Min, Statistics in Medicine 24 (2005); it has a width even where the
        two agree on everything.
        """
        total, gain = self.total + 2, self.only_first - self.only_second
        spread = math.sqrt(self.discordant + 1 - gain**2 / total) / total
        half = NORMAL_95 * spread
        return max(gain / total - half, -1.0), min(gain / total + half, 1.0)

    @property
    def exact_p(self) -> float:
        """McNemar's exact test, two-sided: as uneven by tossing a coin for each discordant one."""
        fewer = min(self.only_first, self.only_second)
        tail = sum(math.comb(self.discordant, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2**self.discordant)

    @property
    def chi_square(self) -> float:
        """McNemar's statistic with Edwards' correction for continuity."""
        if not self.discordant:
            return 0.0
        return max(abs(self.only_first - self.only_second) - 1, 0) ** 2 / self.discordant

    @property
    def chi_square_p(self) -> float:
        """The probability of a larger statistic, with one degree of freedom."""
        return math.erfc(math.sqrt(self.chi_square / 2))


@dataclass(frozen=True)
class Pairing:
    """Two runs on the problems that both have answered and judged."""

    first: Summary  # of the common problems
    second: Summary
    counts: Counts
    wins: tuple[str, ...]  # ids of those that only the first has right
    losses: tuple[str, ...]  # and only the second
    left_out_first: int  # problems of the first alone, or not judged in both
    left_out_second: int
    other_prompts: int  # common problems that the two were asked in other words
    samples: bool  # some problem has several answers, of which the first counts

    @property
    def speed(self) -> float | None:
        """Tokens per forward of the second over those of the first."""
        before = self.first.tokens_per_forward
        return self.second.tokens_per_forward / before if before else None


def pair(first: Results, second: Results) -> Pairing:
    """Returns two runs side by side, given their results by id.

    Raises ValueError where that says nothing: no problem in common, or other right answers.
    """
    one, other = _first_samples(first), _first_samples(second)
    common = [
        (one[name], other[name])
        for name in one
        if name in other and None not in (one[name].correct, other[name].correct)
    ]
    _check(one, other, common)
    wins = [a.id for a, b in common if a.correct and not b.correct]
    losses = [a.id for a, b in common if b.correct and not a.correct]
    both = sum(bool(a.correct and b.correct) for a, b in common)
    neither = len(common) - both - len(wins) - len(losses)
    return Pairing(
        first=summarise([a for a, _ in common]),
        second=summarise([b for _, b in common]),
        counts=Counts(both, len(wins), len(losses), neither),
        wins=tuple(wins),
        losses=tuple(losses),
        left_out_first=len(one) - len(common),
        left_out_second=len(other) - len(common),
        other_prompts=sum(a.prompt != b.prompt for a, b in common),
        samples=len(one) < len(first) or len(other) < len(second),
    )


def _first_samples(results: Results) -> dict[str, Result]:
    """Returns one answer a problem: McNemar's test takes problems as independent trials."""
    return {r.problem_id: r for r in results.values() if r.is_first_sample}


def _check(one: Results, other: Results, common: Sequence[tuple[Result, Result]]) -> None:
    if not common:
        shared = len(one.keys() & other.keys())
        why = (
            f"{shared} problems are in both, but none is judged in both: "
            "`dllm eval --run-code` with the same command judges them"
            if shared
            else f"the first has {len(one)}, the second {len(other)}, and no id is in both"
        )
        raise ValueError(f"the runs have no problem to compare: {why}")
    changed = next((a.id for a, b in common if a.answer != b.answer), None)
    if changed is not None:
        raise ValueError(f"problem {changed!r} has another right answer in each: not the same data")


def runs_in(path: Path) -> dict[str, dict[str, Result]]:
    """Returns the results of each run in a file, in the order of their first lines.

    Raises ValueError for a file that is missing, empty or no results file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a results file of `dllm eval --output`")
    if not path.is_file():
        raise ValueError(f"there is no results file {path}: `dllm eval --output {path}` writes one")
    found: dict[str, dict[str, Result]] = {}
    for result in read_lines(path):
        found.setdefault(result.run, {})[result.id] = result
    if not found:
        raise ValueError(f"{path} holds no results yet")
    return found


def label_in(results: Results) -> str:
    """Returns what a run is called: scheduler / cache, then verifier and constraint if any."""
    settings = next(iter(results.values())).settings
    held = (settings.get("other") or {}).get("constraint")
    return " / ".join([label_of(settings), *([] if held is None else [brief(held, _LONGEST)])])


def choose(path: Path, text: str | None, option: str) -> Results:
    """Returns the run whose name begins with `text`, or whose label has it in it; or the only one.

    Raises ValueError that lists the runs if that is none or several.
    """
    runs = runs_in(path)
    labels = {name: label_in(results) for name, results in runs.items()}
    fits = list(runs)
    if text is not None:
        exact = [name for name in runs if text in (name, labels[name])]
        fits = exact or [n for n in runs if n.startswith(text) or text in labels[n]]
    if len(fits) == 1:
        return runs[fits[0]]
    listed = "; ".join(f"{name} = {labels[name]}, {len(runs[name])} problems" for name in runs)
    problem = f"{path} has {len(runs)} runs"
    if text is not None:
        number = len(fits) or "none"
        problem = f"{option} {text!r} fits {number} of the {len(runs)} runs in {path}"
    raise ValueError(f"{problem}: name one by {option} with its name or label: {listed}")
