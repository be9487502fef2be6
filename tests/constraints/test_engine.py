"""The sets of the engine against enumeration of all fillings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dllm.constraints.bound import Bounds, Kept
from dllm.constraints.engine import Tables
from dllm.constraints.host import Host
from dllm.constraints.known import known_of
from dllm.constraints.language import OPEN, language_of, shortest_length
from dllm.constraints.lines import RowLanguage
from dllm.constraints.span import Compiler
from tests.support.languages import Case, automaton_of, enumerated, random_automaton, random_case


@pytest.mark.parametrize("seed", range(8))
def test_sets_are_those_of_enumeration(seed: int) -> None:
    for number in range(9 * seed, 9 * seed + 9):
        check_sets(random_case(number))


@pytest.mark.slow
def test_sets_of_many_more_canvases() -> None:
    for seed in range(1000, 1400):
        check_sets(random_case(seed))


def check_sets(one: Case) -> None:
    segment = one.segment()
    reach = one.tables.reach(segment)
    feasible = one.tables.feasible(segment)
    assert torch.equal(feasible, one.tables.joined(reach))
    barred = one.tables.barred(one.tables.allowed(reach))
    for place, (row, held) in enumerate(zip(one.rows, one.held, strict=True)):
        if row is None:
            assert feasible[place]
            assert not barred[place].any()
            continue
        automaton = row.language.automaton
        all_of = enumerated(automaton, held)
        assert bool(feasible[place]) == bool(all_of.fillings)
        for column in range(len(held)):
            (found,) = np.nonzero(~barred[place, row.start + column].numpy())
            assert set(found.tolist()) == all_of.allowed(automaton, column)


@pytest.mark.parametrize("few", [0, 2, 4096])
@pytest.mark.parametrize("spare", [False, True])
def test_a_host_holds_logits_as_a_device_does(
    few: int, spare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the tokens that are few, or by a bound of each; in place where that is allowed."""
    monkeypatch.setattr("dllm.constraints.bound._FEW", few)
    monkeypatch.setattr("dllm.constraints.bound._FEW_BARRED", few)
    monkeypatch.setattr("dllm.constraints.bound._KEPT", Kept())
    for seed in range(8):
        one = random_case(seed)
        given = (one.tables.first, one.tokens, one.columns, one.masked)
        host, device = Host(one.tables, one.rows).read(*given), one.tables.read(*given)
        assert torch.equal(host.allowed, device.allowed)
        assert torch.equal(host.single, device.single)
        shape = (*one.tokens.shape, one.tables.classes.shape[1])
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        places = one.columns.flip(1)[:, ::2]
        at = places[..., None].expand(-1, -1, shape[-1])
        for chosen, where in ((logits, None), (logits.gather(1, at), places)):
            own = chosen.clone()
            expected = device.hold(chosen, where, seed % 2, False)
            found = host.hold(own, where, seed % 2, spare)
            assert torch.equal(found, expected)
            assert torch.equal(own, expected if spare else chosen)
            assert torch.equal(device.hold(chosen.clone(), where, seed % 2, True), expected)


@pytest.mark.parametrize("seed", range(6))
def test_columns_that_nobody_asks_about_may_hold_anything(seed: int) -> None:
    """Of all others a device and a host say what they say when all are asked about."""
    one = random_case(seed)
    asked = torch.rand(one.tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    given = (one.tables.first, one.tokens, one.columns, one.masked)
    full, device = one.tables.read(*given), one.tables.read(*given, asked)
    host = Host(one.tables, one.rows).read(*given, asked)
    logits = torch.zeros(*one.tokens.shape, one.tables.classes.shape[1])
    for some in (device, host):
        assert torch.equal(some.allowed, full.allowed | ~asked[..., None])
        assert torch.equal(some.single, full.single & asked)
        found = some.hold(logits.clone(), None, 0, True)
        assert torch.equal(found, full.hold(logits, None, 0, False).where(asked[..., None], 0))


def test_many_columns_at_once_are_those_of_one_after_the_other() -> None:
    """More of them than a word has bits, and than each narrower word has."""
    rows = [row for row in random_case(5).rows if row is not None]
    row = max(rows, key=lambda row: row.language.automaton.num_states)
    tables, known = Tables([row], torch.device("cpu")), known_of(row.language)
    source = torch.Generator().manual_seed(0)
    for count in (1, 9, 17, 40, 150):
        sets = torch.rand(2, count, tables.num_states, generator=source) < 0.3
        sets[..., -1] = False
        pairs = [(one.numpy().tobytes(), two.numpy().tobytes()) for one, two in sets.unbind(1)]
        assert len(set(pairs)) > count // 2
        found = torch.stack([torch.from_numpy(held.classes) for held in known.between(pairs)])
        assert torch.equal(found[None], tables.between(*sets.float()))


def test_a_language_is_known_once_for_all_rows_and_calls() -> None:
    """Other rows, seats and calls find what the first ones had worked out."""
    one = random_case(4)
    row = next(row for row in one.rows if row is not None)
    first, other = (Host(Tables([row] * n, one.tables.device), [row] * n) for n in (1, 3))
    assert {*first.known, *other.known} == {known_of(row.language)}
    automaton = random_automaton(np.random.default_rng(0), 4)
    compiled = [Compiler(4, ()).row(automaton, [OPEN] * 8, 0, "it").language for _ in range(2)]
    assert compiled[0] is compiled[1]
    assert Compiler(4, (3,)).row(automaton, [OPEN] * 8, 0, "it").language is not compiled[0]


def test_bounds_of_all_languages_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one asked for stays, and what was dropped is made again."""
    monkeypatch.setattr("dllm.constraints.bound._KEPT", Kept())
    monkeypatch.setattr("dllm.constraints.bound._MOST", 100)
    members = [np.arange(8), np.arange(8, 24)]
    one, other = Bounds(members), Bounds(members)
    small, large = (np.array(held).tobytes() for held in ([True, False], [False, True]))
    kept = one.of(small)
    assert one.of(small) is kept
    assert kept.allowed is not None
    assert kept.allowed.tolist() == list(range(8))
    assert other.of(small) is not kept
    assert other.of(large) is other.of(large)
    assert one.of(small) is not kept


def test_a_host_forgets_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is kept between steps, and in whatever order canvases come."""
    monkeypatch.setattr("dllm.constraints.known._MOST", 200)
    one = random_case(3)
    host, source = Host(one.tables, one.rows), torch.Generator().manual_seed(0)
    for seed in range(20):
        masked = one.masked & (torch.rand(one.tokens.shape, generator=source) < 0.5 + seed / 40)
        given = (one.tables.first, one.tokens, one.columns, masked)
        found, expected = host.read(*given), one.tables.read(*given)
        assert torch.equal(found.allowed, expected.allowed)
        assert torch.equal(
            found.fits(one.tokens, one.masked), expected.fits(one.tokens, one.masked)
        )


@pytest.mark.parametrize("seed", range(12))
def test_what_stands_before_a_window_is_one_state(seed: int) -> None:
    """A window in the middle, behind tokens and before masks, has the sets of the whole row."""
    rng = np.random.default_rng(seed)
    automaton = random_automaton(rng, 3)
    language = language_of(automaton, 3)
    words = enumerated(automaton, [OPEN] * 6).fillings
    if not words:
        return
    word = words[int(rng.integers(len(words)))]
    row = RowLanguage(language, 2, 8, language.tails([OPEN] * 6))
    tables = Tables([row], torch.device("cpu"))
    tokens = torch.tensor([[0, 0, *word, 0, 0]])
    masked = torch.zeros_like(tokens, dtype=torch.bool)
    masked[:, 4:8] = True
    masked[:, 5] = False
    entry = tables.states_at(tokens, torch.tensor([4]), 4)
    columns = torch.arange(4, 7)[None]
    segment = tables.segment(entry, tokens[:, 4:7], columns, masked[:, 4:7])
    allowed = ~tables.barred(tables.allowed(tables.reach(segment)))[0]
    canvas = [*word[:2], OPEN, word[3], OPEN, OPEN]
    all_of = enumerated(automaton, canvas)
    for place in range(3):
        (found,) = np.nonzero(allowed[place].numpy())
        assert set(found.tolist()) == all_of.allowed(automaton, 2 + place)


def test_given_text_behind_the_window_counts() -> None:
    """`ab|ba` with b at the end leaves a at the beginning."""
    language = language_of(
        automaton_of([[1, 2], [-1, 3], [3, -1], [-1, -1]], [False] * 3 + [True]), 2
    )
    row = RowLanguage(language, 0, 2, language.tails([OPEN, 1]))
    tables = Tables([row], torch.device("cpu"))
    first = torch.zeros(1, 1, dtype=torch.int64)
    segment = tables.segment(tables.first, first, first, torch.ones(1, 1, dtype=torch.bool))
    allowed = ~tables.barred(tables.allowed(tables.reach(segment)))[0, 0]
    assert allowed.tolist() == [True, False]


def test_forbidden_tokens_change_the_shortest_length() -> None:
    """`a|bbb` takes one token, and three once a is forbidden."""
    table = [[1, 2], [-1, -1], [-1, 3], [-1, 1]]
    automaton = automaton_of(table, [False, True, False, False])
    assert shortest_length(language_of(automaton, 2)) == 1
    assert shortest_length(language_of(automaton, 2, (0,))) == 3
    assert shortest_length(language_of(automaton, 2, (0, 1))) is None
