"""A scheduler's setting in a comparison, and what it came to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dllm import cache as caches
from dllm.eval.report.schedulers_list import Entry
from dllm.eval.run.describe import short
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run

BASELINE = "threshold"  # what every other scheduler has to be better than


@dataclass(frozen=True)
class Contender:
    """A scheduler's setting with the cache that it runs on."""

    run: Run
    text: str  # what it is called, unlike any other
    curve: str  # joins points of the plot
    setting: str  # tells points of a curve apart
    cache: str
    is_baseline: bool
    file: str  # of its results, in the comparison's folder


def contender(entry: Entry, run: Run, *, names_cache: bool) -> Contender:
    """Returns an entry with the run that measures it; several caches have to be named."""
    described = run.describe()
    cache = short(described["cache"], caches.registry)
    suffix = f" / {cache}" if names_cache else ""
    name = entry.text if cache == "none" else f"{entry.text}+{cache}"
    return Contender(
        run=run,
        text=f"{entry.text}{suffix}",
        curve=f"{entry.label}{suffix}",
        setting=entry.setting,
        cache=cache,
        is_baseline=described["scheduler"]["name"] == BASELINE,
        file=re.sub(r"[^\w.,=@+-]+", "-", name) + ".jsonl",
    )


@dataclass(frozen=True)
class Outcome:
    """What a contender came to: all its results, a part of them, or a refusal."""

    contender: Contender
    results: tuple[Result, ...]
    num_problems: int  # that it was to answer
    refusal: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every problem was answered; fewer are the shortest ones and compare badly."""
        return len(self.results) == self.num_problems
