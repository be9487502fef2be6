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
