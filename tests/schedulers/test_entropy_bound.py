"""How many columns go together: entropy bound, certainty density, runs of masks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.schedulers.certainty_density import CertaintyDensity
from dllm.schedulers.entropy_bound import EntropyBound
from dllm.schedulers.hierarchical import Hierarchical
from dllm.state.candidates import Candidates
from tests.support.models import golden_model, random_prompts
from tests.support.views import MASK, view_of

VOCAB = MASK + 1
TINY = 1e-9  # around values that are computed twice


def likely(first: Any) -> Candidates:
    """Candidates (B, W) of which token 0 has the given probability and the rest is even."""
    chance = torch.tensor(first, dtype=torch.float64)[..., None]
    rest = ((1 - chance) / MASK).expand(*chance.shape[:-1], MASK)
    full = torch.cat([chance, rest], -1)
    return Candidates(full.log(), torch.zeros(chance.shape[:-1]).long())


def random_logits(seed: int, rows: int, width: int) -> Candidates:
    source = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, width, VOCAB, generator=source, dtype=torch.float64)
    return Candidates(logits, logits[..., :MASK].argmax(-1))


def random_mask(seed: int, rows: int, width: int) -> Tensor:
    source = torch.Generator().manual_seed(seed + 1)
    return torch.rand(rows, width, generator=source) < 0.7


# Entropy bound


def test_the_largest_entropy_is_spared() -> None:
    candidates = likely([[0.9, 0.6, 0.8, 0.7]])
    entropy = candidates.entropy[0]
    masked = torch.ones(1, 4, dtype=torch.bool)

    def commit(bound: float, **given: Any) -> list[bool]:
        decision = EntropyBound(bound, **given).decide(candidates, view_of(masked))
        return list(decision.commit.tolist()[0])

    # By entropy: columns 0, 2, 3, 1. All but the last of those that go count.
    assert commit(0) == [True, False, False, False]
    for count, last in ((2, 0), (3, 2), (4, 3)):
        limit = sum(float(entropy[column]) for column in (0, 2, 3)[: count - 1])
        assert sum(commit(limit - TINY)) == count - 1, last
        assert sum(commit(limit + TINY)) == count


def test_the_order_is_not_the_measure() -> None:
    """Sure but wide, then unsure but narrow: the sum leaves out the largest, not the last."""
    wide = [0.5] + [0.05] * 10
    narrow = [0.45, 0.4, 0.15] + [0] * 8
    logits = torch.tensor([[wide, narrow, narrow]], dtype=torch.float64).log()
    candidates = Candidates(logits, logits.argmax(-1))
    masked = torch.ones(1, 3, dtype=torch.bool)
    first, second = (float(value) for value in candidates.entropy[0, :2])
    assert first > second
    for bound, count in ((second + TINY, 2), (second - TINY, 1), (2 * second + TINY, 3)):
        decision = EntropyBound(bound, order="confidence").decide(candidates, view_of(masked))
        assert int(decision.commit.sum()) == count
    assert first > second + TINY, "leaving out the last would have committed one"


def test_two_equal_columns_go_together_within_their_entropy() -> None:
    candidates = likely([[0.7, 0.7]])
    entropy = float(candidates.entropy[0, 0])
    masked = torch.ones(1, 2, dtype=torch.bool)
    for bound, both in ((entropy - TINY, False), (entropy + TINY, True)):
        decision = EntropyBound(bound).decide(candidates, view_of(masked))
        assert decision.commit.tolist() == [[True, both]]


def test_small_entropies_are_not_lost_beside_large_ones() -> None:
    """1e-9 nats and 2 nats differ from 2 nats by less than float32 can tell."""
    logits = torch.zeros(1, 2, VOCAB)
    logits[0, 0, 0] = 26.0
    candidates = Candidates(logits, torch.zeros(1, 2).long())
    assert 0 < float(candidates.entropy[0, 0]) < 1e-8
    masked = torch.ones(1, 2, dtype=torch.bool)
    decision = EntropyBound(0, order="confidence").decide(candidates, view_of(masked))
    assert decision.commit.tolist() == [[True, False]]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    width=st.integers(1, 16),
    order=st.sampled_from(["entropy", "confidence", "margin"]),
    bounds=st.lists(st.floats(0, 20), min_size=2, max_size=2).map(sorted),
)
def test_entropy_bound_is_the_longest_prefix(
    seed: int, width: int, order: Any, bounds: list[float]
) -> None:
    candidates, masked = random_logits(seed, 3, width), random_mask(seed, 3, width)
    low, high = (
        EntropyBound(bound, order=order).decide(candidates, view_of(masked)).commit
        for bound in bounds
    )
    assert not (low & ~high).any(), "a larger bound commits no less"
    score = EntropyBound(order=order).score(candidates)
    for row in range(3):
        ranked = sorted(masked[row].nonzero().flatten().tolist(), key=lambda c: -score[row, c])
        entropy = [float(candidates.entropy[row, column]) for column in ranked]
        count = len(ranked)
        while count > 1 and math.fsum(entropy[:count]) - max(entropy[:count]) > bounds[0]:
            count -= 1
        assert low[row].nonzero().flatten().tolist() == sorted(ranked[:count])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**20), width=st.integers(2, 12))
def test_columns_may_come_in_any_order(seed: int, width: int) -> None:
    candidates = random_logits(seed, 1, width)
    masked = torch.ones(1, width, dtype=torch.bool)
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    for scheduler in (EntropyBound(2.0), EntropyBound(2.0, order="margin")):
        commit = scheduler.decide(candidates, view_of(masked)).commit
        moved = scheduler.decide(candidates.at(order[None]), view_of(masked)).commit
        assert torch.equal(moved, commit[:, order])


@pytest.mark.few(1)
@pytest.mark.parametrize("order", ["entropy", "confidence", "margin"])
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 999), block=st.sampled_from([1, 4, 8, 16]))
def test_no_bound_is_one_forward_and_a_zero_bound_one_token(
    order: str, seed: int, block: int
) -> None:
    def run(scheduler: str) -> Any:
        out = dllm.generate(
            golden_model("llada_gqa"),
            random_prompts(2, seed=seed),
            scheduler=scheduler,
            max_new_tokens=16,
            block_length=block,
            at_eos="ignore",
        )
        return out.sequences, out.trace.commit_step.tolist()

    assert run(f"entropy_bound:0,order={order}") == run(f"fixed_quota:order={order}")
    at_once = run(f"fixed_quota:steps={16 // block}")
    assert run(f"entropy_bound:1e9,order={order}") == at_once


# Certainty density


def density(tokens: list[int], sigma: float, reach: int = 400) -> list[float]:
    """Adds up the weights one by one: text before, the tokens, what follows as the last one is."""
    ends = tokens[-1] != MASK
    text = [True] * reach + [token != MASK for token in tokens] + [ends] * reach
    found = []
    for place in range(reach, reach + len(tokens)):
        weights = [math.exp(-((place - other) ** 2) / (2 * sigma**2)) for other in range(len(text))]
        found.append(sum(w for w, told in zip(weights, text, strict=True) if told) / sum(weights))
    return found


@pytest.mark.parametrize("sigma", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("last", [MASK, 3])
def test_density_is_the_weighted_share_of_text(sigma: float, last: int) -> None:
    tokens = [MASK, 3, MASK, MASK, 4, MASK, MASK, last]
    expected = density(tokens, sigma)
    for prompt in (0, 2):  # columns before the slots do not matter: they count as text anyway
        held = torch.tensor([[7] * prompt + tokens])
        width = held.shape[1]
        one = torch.tensor([width])
        view = view_of(held == MASK, tokens=held, prompt_length=one * 0 + prompt, length=one)
        share = CertaintyDensity(sigma=sigma)._density(view, torch.float64)
        assert share[0, prompt:].tolist() == pytest.approx(expected, abs=1e-9)


def test_density_does_not_depend_on_the_window() -> None:
    """Rows of a batch share a window that may be longer than the row."""
    tokens = torch.tensor([[MASK, 3, MASK, MASK]])
    wide = torch.cat([tokens, torch.full((1, 9), 9)], 1)
    four = torch.tensor([4])
    for sigma in (0.5, 3.0, 50.0):
        scheduler = CertaintyDensity(sigma=sigma)
        narrow = scheduler._density(view_of(tokens == MASK, tokens=tokens), torch.float64)
        view = view_of(wide == MASK, tokens=wide, length=four)
        torch.testing.assert_close(scheduler._density(view, torch.float64)[:, :4], narrow)


def test_equal_confidences_go_from_left_to_right() -> None:
    tokens = torch.full((1, 6), MASK)
    scheduler = CertaintyDensity(sigma=2.0)
    for column in range(6):
        commit = scheduler.decide(
            likely([[0.6] * 6]), view_of(tokens == MASK, tokens=tokens)
        ).commit
        assert commit.nonzero().tolist() == [[0, column]]
        tokens = tokens.masked_fill(commit, 1)


def test_certainty_density_stays_in_its_block() -> None:
    out = dllm.generate(
        golden_model("llada_gqa"),
        random_prompts(3),
        scheduler="certainty_density:0.1,sigma=3",
        max_new_tokens=24,
        block_length=8,
        at_eos="ignore",
    )
    for row, prompt in enumerate(random_prompts(3)):
        blocks = [
            {(column - len(prompt)) // 8 for column, _ in step} for step in out.trace.commits(row)
        ]
        assert all(len(block) == 1 for block in blocks)
        assert blocks == sorted(blocks, key=min)


# Hierarchical decoding


def test_one_column_of_each_run() -> None:
    masked = torch.tensor([[True, True, False, True, True, True, False, True]])
    sure = likely([[0.7, 0.8, 0.99, 0.6, 0.6, 0.5, 0.99, 0.3]])
    scheduler = Hierarchical(threshold=None, low_threshold=0.5)
    # Ties go to the lower column; the last run's column is not sure enough.
    assert scheduler.decide(sure, view_of(masked)).commit.nonzero()[:, 1].tolist() == [1, 3]
    both = Hierarchical(threshold=0.65, low_threshold=0.5).decide(sure, view_of(masked))
    assert both.commit.nonzero()[:, 1].tolist() == [0, 1, 3]
    none = Hierarchical(threshold=None, low_threshold=0.9).decide(sure, view_of(masked))
    assert none.commit.nonzero()[:, 1].tolist() == [1], "the best column goes in any case"


@pytest.mark.parametrize("exponent", [1, 2, 4])
def test_a_block_splits_in_halves(exponent: int) -> None:
    width = 2**exponent - 1
    middle = torch.arange(1, width + 1)
    # The middle of every run that arises is its surest column.
    depth = torch.tensor([(int(m) & -int(m)).bit_length() for m in middle])
    sure = likely([(0.5 + depth / 100).tolist()])
    masked = torch.ones(1, width, dtype=torch.bool)
    steps = 0
    while masked.any():
        commit = Hierarchical(None, low_threshold=0).decide(sure, view_of(masked)).commit
        masked, steps = masked & ~commit, steps + 1
    assert steps == exponent


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    width=st.integers(1, 16),
    low=st.sampled_from([0.0, 0.4, 0.7]),
    threshold=st.sampled_from([None, 0.6, 0.9]),
)
def test_neighbours_go_together_only_if_sure(
    seed: int, width: int, low: float, threshold: float | None
) -> None:
    candidates, masked = random_logits(seed, 3, width), random_mask(seed, 3, width)
    commit = Hierarchical(threshold, low).decide(candidates, view_of(masked)).commit
    sure = candidates.confidence > (2.0 if threshold is None else threshold)
    pair = commit[:, 1:] & commit[:, :-1]
    assert not (pair & ~(sure[:, 1:] | sure[:, :-1])).any()
    assert (commit | ~(masked & sure)).all()


def test_doubted_tokens_are_masks_again() -> None:
    masked = torch.tensor([[True, True, False, False, False, False]])
    tokens = torch.tensor([[MASK, MASK, 0, 5, 5, 0]])
    sure = likely([[0.9, 0.3, 0.95, 0.8, 0.6, 0.2]])
    scheduler = Hierarchical(None, low_threshold=0.5, remask_threshold=0.3)
    decision = scheduler.decide(sure, view_of(masked, tokens=tokens))
    # Doubted: 3 and 4, which hold token 5, and 5, which has too little for token 0. The runs are
    # 0-1 and 3-5; of each the best goes. Four open columns or more must go: 4 and 1 come next.
    assert decision.commit.tolist() == [[True, True, False, False, False, False]]
    assert decision.edit is not None
    assert decision.edit.tolist() == [[False, False, False, True, True, False]]
    assert decision.remask is not None
    assert decision.remask.tolist() == [[False, False, False, False, False, True]]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    width=st.integers(1, 16),
    low=st.sampled_from([0.0, 0.4, 0.9]),
    remask=st.sampled_from([0.2, 0.6, 1.0]),
)
def test_remasking_fills_a_column_more_each_step(
    seed: int, width: int, low: float, remask: float
) -> None:
    """Whatever the model says in each step: here, anything."""
    scheduler = Hierarchical(0.95, low, remask_threshold=remask)
    tokens, steps = torch.full((2, width), MASK), 0
    while (tokens == MASK).any():
        candidates = random_logits(seed + steps, 2, width)
        masked = tokens == MASK
        view = view_of(masked, block_step=steps, tokens=tokens)
        decision = scheduler.decide(candidates, view)
        assert decision.edit is not None
        assert decision.remask is not None
        written = decision.commit | decision.edit
        assert not (written & decision.remask).any()
        after = torch.where(written, candidates.token, tokens).masked_fill(decision.remask, MASK)
        left, before = (after == MASK).sum(1), masked.sum(1)
        assert ((left < before) | (before == 0)).all()
        # The loop leaves a full row alone.
        tokens, steps = torch.where(before[:, None] > 0, after, tokens), steps + 1
    assert steps <= width


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_remasking_runs_end_and_do_not_depend_on_the_batch(cache: str) -> None:
    scheduler = "hierarchical:0.5,low_threshold=0.2,remask_threshold=0.4"
    options: dict[str, Any] = {"scheduler": scheduler, "max_new_tokens": 24, "block_length": 8}
    model, prompts = golden_model("llada_gqa"), random_prompts(4)
    together = dllm.generate(model, prompts, cache=cache, at_eos="ignore", **options)
    assert together.trace.changes is not None
    assert max(map(len, together.trace.changes)) > 24, "nothing was revised"
    for row, prompt in enumerate(prompts):
        alone = dllm.generate(model, [prompt], cache=cache, at_eos="ignore", **options)
        assert alone.trace.changes is not None
        assert alone.trace.changes[0] == together.trace.changes[row]
        assert together.metrics.rows[row].forwards <= 24
        assert 126 not in together.sequences[row]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("entropy_bound:-1", "bound=-1 must be 0 or more"),
        ("entropy_bound:order=random", "must be"),
        ("certainty_density:sigma=0", "sigma=0 must be positive"),
        ("hierarchical@slow", "known: fast"),
    ],
)
def test_wrong_options_are_explained(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.schedulers.registry.create(given)


def test_presets_and_short_forms() -> None:
    create = dllm.schedulers.registry.create
    assert create("hierarchical@fast") == Hierarchical(0.8, 0.5)
    assert replace(Hierarchical(), remask_threshold=0.4).can_revise
    assert not Hierarchical().can_revise
