"""Products of parameters: each value is in the fast suite, each pair of values in the slow one.

What is left of a product runs with `--whole` (`make test-whole`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pytest

SLOW = (pytest.mark.slow,)
WHOLE = (pytest.mark.slow, pytest.mark.whole)


def crossed(*lists: Sequence[Any]) -> list[Any]:
    """Returns all combinations; those in the fast suite have each value of each list at least once.

    They are as many as the longest list is long. With some slow tests they have each pair of
    values, the others are for the whole.
    """
    turns = range(max(map(len, lists)))
    fast = {tuple(turn % len(values) for values in lists) for turn in turns}
    cases = list(itertools.product(*(range(len(values)) for values in lists)))
    first = [place for place, case in enumerate(cases) if case in fast]
    marks = marks_of(cases, first)
    return [
        pytest.param(
            *(values[place] for values, place in zip(lists, case, strict=True)),
            marks=own,
            id="-".join(str(values[place]) for values, place in zip(lists, case, strict=True)),
        )
        for case, own in zip(cases, marks, strict=True)
    ]


def marks_of(cases: Sequence[Sequence[Hashable]], fast: Iterable[int] = ()) -> list[Any]:
    """Returns the marks of each case of a product, those at the places of `fast` without any."""
    first = set(fast)
    slow = covering(cases, first)
    return [() if at in first else SLOW if at in slow else WHOLE for at in range(len(cases))]


def covering(cases: Sequence[Sequence[Hashable]], first: Iterable[int] = ()) -> set[int]:
    """Returns the places of few cases, the first among them, with every pair that a case has.

    A pair is two values at two places of a case. Each case is the one with most pairs that no case
    before it has, which are never more than they were: the greatest of old counts, if it still
    holds, is the greatest.
    """
    pairs = [set(itertools.combinations(enumerate(case), 2)) for case in cases]
    chosen = set(first)
    seen = set().union(*(pairs[place] for place in chosen))
    queue = [(-len(new - seen), place) for place, new in enumerate(pairs)]
    heapq.heapify(queue)
    while queue:
        count, place = heapq.heappop(queue)
        new = pairs[place] - seen
        if -count > len(new):
            heapq.heappush(queue, (-len(new), place))
        elif new:
            chosen.add(place)
            seen |= new
        else:
            break
    return chosen


def some(values: Iterable[Any], *, every: int) -> list[Any]:
    """Returns values of which the first and each `every`-th after it are in the fast suite."""
    return [
        pytest.param(value, marks=pytest.mark.slow if place % every else ())
        for place, value in enumerate(values)
    ]


def thin(items: Iterable[pytest.Item]) -> None:
    """Marks as slow all but a few cases of each test that says how many the fast suite runs."""
    cases: dict[tuple[Any, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            cases.setdefault((item.parent, getattr(item, "originalname", "")), []).append(item)
    for of_test in cases.values():
        mark: Any = of_test[0].get_closest_marker("few")
        (count,) = mark.args
        fast = unlike([values_of(item) for item in of_test], count)
        for place, item in enumerate(of_test):
            if place not in fast:
                item.add_marker("slow")


def without_whole(items: list[pytest.Item]) -> list[pytest.Item]:
    """Returns the tests that only `--whole` runs, and takes them off the list."""
    left_out = [item for item in items if item.get_closest_marker("whole")]
    items[:] = [item for item in items if not item.get_closest_marker("whole")]
    return left_out


def unlike(cases: Sequence[set[tuple[str, str]]], count: int) -> set[int]:
    """Returns the places of a few cases: each has most values that none before it has.

    Among equals they are spread evenly, the first case among them.
    """
    chosen: set[int] = set()
    seen: set[tuple[str, str]] = set()
    for turn in range(min(count, len(cases))):
        even = turn * len(cases) // count
        left = [place for place in range(len(cases)) if place not in chosen]
        place = min(left, key=lambda at: (-len(cases[at] - seen), abs(at - even)))
        chosen.add(place)
        seen |= cases[place]
    return chosen


def values_of(item: pytest.Item) -> set[tuple[str, str]]:
    """Returns the values of a case's parameters, as text."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return {(name, repr(value)) for name, value in params.items()}
