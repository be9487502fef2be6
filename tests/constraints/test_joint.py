"""What is committed together against enumeration: the surest first, or the most probable text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dllm.constraints.host import Host
from dllm.constraints.language import OPEN
from dllm.constraints.viterbi import best_classes, best_tokens, class_scores
from dllm.decoding.languages.constrained import Sets, together
from tests.support.languages import Case, enumerated, random_case
from tests.support.laws import transfers_of

NO_TOKEN = -1  # the place of a mask token that is in no vocabulary


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(6))
def test_commits_together_are_those_of_enumeration(seed: int) -> None:
    for number in range(18 * seed, 18 * seed + 18):
        for host in (True, False):
            check_together(random_case(number), number, host)


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(6))
def test_the_most_probable_filling_is_that_of_enumeration(seed: int) -> None:
    for number in range(18 * seed, 18 * seed + 18):
        check_best(random_case(number), number)


@pytest.mark.slow
def test_many_more_canvases() -> None:
    for seed in range(1000, 1200):
        for host in (True, False):
            check_together(random_case(seed), seed, host)
        check_best(random_case(seed), seed)


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_commits_that_clash_wait_for_the_device_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a device is not the host: however many commits clash, one number is read."""
    one = random_case(seed)
    sets = sets_of(one, host=False)
    tokens, chosen = one.tokens.flip(0), one.masked & one.feasible[:, None]
    found = []

    def steps() -> Iterator[None]:
        for each in (chosen, torch.zeros_like(chosen)):
            found.append(together(sets, tokens, one.masked, each, tokens.float()))
            yield

    assert transfers_of(steps(), monkeypatch) == [1, 1]
    monkeypatch.undo()
    assert not torch.equal(found[0], chosen)  # some clashed


def sets_of(one: Case, host: bool) -> Sets:
    """Returns the sets of a case as the host makes them, or as tensors."""
    given = (one.tables.first, one.tokens, one.columns, one.masked)
    read = Host(one.tables, one.rows).read(*given) if host else one.tables.read(*given)
    return Sets(one.tables, read, *given, NO_TOKEN, "confidence")


def check_together(one: Case, seed: int, host: bool) -> None:
    """Each row takes the surest commits, one after the other, that leave some filling."""
    source = torch.Generator().manual_seed(seed)
    sets = sets_of(one, host)
    logits = torch.rand(*one.tokens.shape, one.tables.classes.shape[1], generator=source)
    logits = logits.masked_fill(one.tables.barred(sets.allowed), -torch.inf)
    tokens, confidence = logits.argmax(-1), torch.rand(one.tokens.shape, generator=source)
    chosen = one.masked & (torch.rand(one.tokens.shape, generator=source) < 0.7)
    chosen = chosen & one.feasible[:, None]
    found = together(sets, tokens, one.masked, chosen, confidence)
    for place, (row, held) in enumerate(zip(one.rows, one.held, strict=True)):
        if row is None:
            assert torch.equal(found[place], chosen[place])
            continue
        now = list(held)
        for column in confidence[place].argsort(descending=True).tolist():
            inner = column - row.start
            if not chosen[place, column]:
                assert not found[place, column]
            elif not 0 <= inner < len(held):
                assert found[place, column]
            else:
                trial = [*now[:inner], int(tokens[place, column]), *now[inner + 1 :]]
                fits = bool(enumerated(row.language.automaton, trial).fillings)
                assert bool(found[place, column]) == fits
                now = trial if fits else now


def check_best(one: Case, seed: int) -> None:
    """The tokens found are an accepted filling, and none has a larger sum of logits."""
    source = torch.Generator().manual_seed(seed)
    tables, segment = one.tables, one.segment()
    logits = torch.randn(*one.tokens.shape, tables.classes.shape[1], generator=source)
    classes = best_classes(tables, segment, class_scores(tables, logits))
    tokens = torch.where(one.masked, best_tokens(tables, logits, classes), one.tokens)
    for place, (row, held) in enumerate(zip(one.rows, one.held, strict=True)):
        if row is None or not (fillings := enumerated(row.language.automaton, held).fillings):
            continue
        span = slice(row.start, row.stop)
        answer = tuple(tokens[place, span].tolist())
        assert answer in fillings
        most = max(total(logits[place, span], held, filling) for filling in fillings)
        assert total(logits[place, span], held, answer) == pytest.approx(most, abs=1e-5)


def total(logits: Tensor, held: list[int], filling: tuple[int, ...]) -> float:
    """Returns the sum of the logits (n, V) of a filling's tokens at holes."""
    holes = [column for column, token in enumerate(held) if token == OPEN]
    return float(sum(logits[column, filling[column]] for column in holes))
