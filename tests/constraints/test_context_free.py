"""Whether gaps can be filled with texts of a grammar, against all fillings of small rows."""

from __future__ import annotations

import random

import pytest

from dllm.constraints import Grammar
from dllm.constraints.language import OPEN
from tests.support.grammars import Rows, random_rules, short_texts, written
from tests.support.marks import some

SINGLE = Rows(("a", "b"))
TOKENS = (SINGLE, Rows(("a", "b", "ab", "ba")), Rows(("a", "bb", "ba"), has_ends=False))


def questions(seed: int, count: int) -> list[tuple[Rows, Grammar, set[str], list[int]]]:
    """Returns rows with holes over random grammars, and the texts of a grammar up to 10 letters."""
    source = random.Random(seed)
    found: list[tuple[Rows, Grammar, set[str], list[int]]] = []
    while len(found) < count:
        rules = random_rules(source)
        texts = short_texts(rules, 10)
        if not texts:
            continue
        grammar = Grammar(written(rules), method="emptiness")
        for rows in TOKENS:
            row = rows.random_row(source, source.randrange(1, 6))
            found.append((rows, grammar, texts, row))
    return found


@pytest.mark.parametrize("seed", some(range(8), every=2))
def test_a_no_is_right_and_a_yes_is_of_some_text(seed: int) -> None:
    over = 0
    for rows, grammar, texts, row in questions(seed, 200):
        answer = rows.row(grammar).completable(row)
        some = rows.fillings(row, texts)
        assert answer is not None
        assert answer or not some, (grammar.text, row)
        if OPEN not in row:
            assert answer == bool(some), (grammar.text, row)
        over += answer and not some
    assert over  # a yes may be of another number of tokens


@pytest.mark.parametrize("seed", range(3))
def test_a_yes_is_of_a_text_with_gaps_of_any_length(seed: int) -> None:
    """As published: of a row without ends, gaps hold any text of a letter or more, the last any."""
    for rows, grammar, texts, row in questions(seed, 200):
        if rows.has_ends and max(row) >= rows.end:
            continue
        pattern = rows.pattern(row)
        expected = any(pattern.fullmatch(one) for one in texts)
        answer = rows.row(grammar).completable(row)
        if rows.has_ends and row[-1] == OPEN and answer != expected:
            # What is behind a row has no more letters than the longest tokens in its masks.
            assert expected
            assert not rows.fillings(row, texts)
        else:
            assert answer == expected, (grammar.text, row)


@pytest.mark.parametrize("seed", range(3))
def test_completions_are_texts_of_exactly_so_many_tokens(seed: int) -> None:
    found = 0
    for rows, grammar, texts, row in questions(seed, 200):
        filled = rows.row(grammar).complete(row)
        some = rows.fillings(row, texts)
        if rows == SINGLE:
            assert (filled is None) == (not some), (grammar.text, row)
        if filled is not None:
            found += 1
            assert filled in some, (grammar.text, row)
            assert all(one in (OPEN, new) for one, new in zip(row, filled, strict=True))
    assert found > 50


def test_the_shortest_text_is_behind_what_is_given() -> None:
    grammar = Grammar('start: "a" start "b" | "a" "b"', method="emptiness")
    language = SINGLE.row(grammar)
    assert language.language.shortest == 2
    row = language.complete([0, 0, OPEN, OPEN, OPEN, OPEN])
    assert row == [0, 0, 1, 1, SINGLE.end, SINGLE.end]


def test_questions_that_take_too_long_stay_undecided() -> None:
    grammar = Grammar("start: start start | /[ab]/", method="emptiness")
    language = SINGLE.row(grammar, most_items=20)
    assert language.completable([0] * 4) is None
    assert language.complete([OPEN] * 4 + [0]) is None
    assert language.completable([0, OPEN]) is True  # and the chart is as it was


def test_what_was_read_before_changes_no_answer() -> None:
    source = random.Random(7)
    for rows, grammar, _, _ in questions(11, 40):
        asked = [rows.random_row(source, 4) for _ in range(6)]
        kept = rows.row(grammar)
        assert [kept.completable(row) for row in asked] == [
            rows.row(grammar).completable(row) for row in asked
        ]
