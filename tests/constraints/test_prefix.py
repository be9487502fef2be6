"""What llguidance lets come next, against all short texts of small grammars."""

from __future__ import annotations

import builtins
import random
from typing import Any

import pytest

from dllm.constraints import Grammar
from dllm.constraints.language import OPEN
from dllm.constraints.prefix import PrefixEngine, PrefixRow
from tests.support.grammars import Rows, random_rules, short_texts, written

ROWS = Rows(("a", "b", "ab"))
PAIRS = Grammar('start: "a" start "b" |', method="prefix")
SPARE = 6  # masks behind a token, which any ending of a small grammar fits into


def engine_of(grammar: Grammar) -> PrefixEngine:
    return PrefixEngine(grammar.text, ROWS.row(grammar).texts, ROWS.pad + 1)


@pytest.mark.parametrize("seed", range(3))
def test_what_may_come_next_is_what_a_text_goes_on_with(seed: int) -> None:
    source, checked = random.Random(seed), 0
    while checked < 60:
        rules = random_rules(source)
        if not all(short_texts(rules, 6, name) for name in rules):
            continue  # it lets a rule begin that never ends
        grammar = Grammar(written(rules), method="prefix")
        row, oracle, tokens = PrefixRow(engine_of(grammar)), ROWS.row(grammar), list[int]()
        for _ in range(4):
            found = row.allowed(tokens)
            every = range(ROWS.pad)  # padding comes behind an end alone
            expected = [t for t in every if oracle.completable([*tokens, t, *[OPEN] * SPARE])]
            assert found is not None
            assert found.nonzero()[0].tolist() == expected, (grammar.text, tokens)
            checked += 1
            going = [one for one in expected if one != ROWS.end]
            if not going:
                break
            # Sometimes it goes back, as a row does whose tokens were written anew.
            tokens = [*tokens, source.choice(going)] if source.random() < 0.8 else tokens[:-1]


def test_behind_an_end_only_ends_and_padding_come() -> None:
    found = PrefixRow(engine_of(PAIRS)).allowed([0, 1, ROWS.end])
    assert found is not None
    assert found.nonzero()[0].tolist() == [ROWS.end, ROWS.pad]


def test_a_text_that_it_does_not_read_is_left_to_the_grammar() -> None:
    row = PrefixRow(engine_of(PAIRS))
    assert row.allowed([1]) is None
    found = row.allowed([0])
    assert found is not None
    assert found.nonzero()[0].tolist() == [0, 1, 2]


def test_what_it_cannot_read_is_refused_with_its_reason() -> None:
    with pytest.raises(ValueError, match=r"(?s)llguidance cannot read the grammar: .*'emptiness'"):
        PrefixEngine("start: %", ROWS.row(PAIRS).texts, ROWS.pad + 1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("llguidance"):
            raise ImportError(name)
        return known(name, *rest, **more)

    texts = ROWS.row(PAIRS).texts
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'dllm\[structured\]'"):
        PrefixEngine(PAIRS.text, texts, ROWS.pad + 1)
