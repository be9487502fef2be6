"""Which cases of a test the fast suite runs."""

from __future__ import annotations

from itertools import product

from tests.support.marks import unlike


def test_a_few_cases_have_each_value_once() -> None:
    cases = [{("a", one), ("b", other)} for one, other in product("xyz", "uvw")]
    chosen = unlike(cases, 3)
    assert 0 in chosen
    assert len(chosen) == 3
    assert set().union(*(cases[place] for place in chosen)) == set().union(*cases)


def test_cases_of_one_parameter_are_spread() -> None:
    assert unlike([{("a", str(n))} for n in range(10)], 4) == {0, 2, 5, 7}
    assert unlike([{("a", "x")}], 4) == {0}
