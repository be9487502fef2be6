"""Products of parameters of which the fast suite runs a part."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def crossed(*lists: Sequence[Any]) -> list[Any]:
    """Returns all combinations; those in the fast suite have each value of each list at least once.

    They are as many as the longest list is long, the others are slow tests.
    """
    turns = range(max(map(len, lists)))
    fast = {tuple(turn % len(values) for values in lists) for turn in turns}
    return [
        pytest.param(
            *(values[place] for values, place in zip(lists, places, strict=True)),
            marks=() if places in fast else pytest.mark.slow,
            id="-".join(str(values[place]) for values, place in zip(lists, places, strict=True)),
        )
        for places in itertools.product(*(range(len(values)) for values in lists))
    ]


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
