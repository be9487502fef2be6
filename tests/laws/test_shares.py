"""What the suites take of products: each value in the fast one, each pair of values in the slow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.laws import SHARING, pairs_on, share_of, text_of
from tests.support.marks import covering, crossed, without_whole

Case = Sequence[Any]


def pairs_of(cases: Iterable[Case]) -> set[Any]:
    """Returns the pairs of values that cases have, each value with its place in the case."""
    return {pair for case in cases for pair in itertools.combinations(enumerate(case), 2)}


def names_of(param: Any) -> set[str]:
    return {mark.name for mark in param.marks}


def test_every_value_is_fast_and_every_pair_is_slow() -> None:
    lists = (("a", "b", "c"), (1, 2, 3, 4, 5), (False, True), "xyz")
    params = crossed(*lists)
    assert [param.values for param in params] == list(itertools.product(*lists))
    fast = [param.values for param in params if not names_of(param)]
    assert len(fast) == 5
    assert [set(values) for values in zip(*fast, strict=True)] == [set(values) for values in lists]
    run = [param.values for param in params if "whole" not in names_of(param)]
    assert pairs_of(run) == pairs_of(itertools.product(*lists))
    assert len(run) <= 22  # of 90, where 15 have to be
    assert all(names_of(param) in (set(), {"slow"}, {"slow", "whole"}) for param in params)


def test_a_product_of_two_is_all_pairs() -> None:
    assert {"whole"} & set().union(*map(names_of, crossed("abc", range(4)))) == set()


def test_pairs_that_no_case_has_are_not_asked_for() -> None:
    cases = [case for case in itertools.product(range(4), repeat=3) if sum(case) % 3]
    chosen = covering(cases, first=[7])
    assert 7 in chosen
    assert pairs_of(cases[place] for place in chosen) == pairs_of(cases)
    assert len(chosen) < len(cases) - 15


@pytest.mark.parametrize("model", ["llada_gqa", "dream_gqa"])
def test_laws_that_share_leave_out_no_pair(model: str) -> None:
    pairs = {(text_of(scheduler), text_of(cached)) for scheduler, cached in pairs_on(model)}
    shares = {law: share_of(model, law) for law in SHARING}
    assert set().union(*shares.values()) == pairs
    for share in shares.values():
        assert len(share) < len(pairs) / 2
        for place in (0, 1):
            assert {pair[place] for pair in share} == {pair[place] for pair in pairs}


def test_the_whole_is_left_out_of_a_list() -> None:
    marked: list[set[str]] = [set(), {"slow"}, {"slow", "whole"}, {"slow"}, {"whole"}]
    items: Any = [SimpleNamespace(get_closest_marker=marks.__contains__) for marks in marked]
    every = list(items)
    assert without_whole(items) == [every[2], every[4]]
    assert items == [every[0], every[1], every[3]]
