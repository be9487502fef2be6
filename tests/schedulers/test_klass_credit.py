"""Methods that compare steps: KLASS watches the distribution settle, credit adds up proposals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.schedulers import Decision
from dllm.schedulers.credit import Credit
from dllm.schedulers.klass import Klass
from dllm.state.candidates import Candidates
from dllm.state.carried import State, merged
from dllm.state.window import View
from tests.support.models import golden_model, random_prompts
from tests.support.views import MASK, SETUP, view_of

VOCAB = MASK + 1


def spread(probabilities: Any, token: Any = None) -> Candidates:
    """Candidates (B, W) whose first tokens have these probabilities (B, W, n)."""
    given = torch.tensor(probabilities, dtype=torch.float64)
    rest = (1 - given.sum(-1, keepdim=True)) / (VOCAB - given.shape[-1])
    full = torch.cat([given, rest.expand(*given.shape[:-1], VOCAB - given.shape[-1])], -1)
    best = full.argmax(-1) if token is None else torch.tensor(token)
    return Candidates(full.log(), best)


def follow(
    scheduler: Klass | Credit, steps: Sequence[Candidates], masked: Tensor, **given: Any
) -> list[Decision]:
    """Decides step after step on one canvas, to which nothing is written."""
    rows, width = masked.shape
    setup = replace(SETUP, num_rows=rows, width=width, vocab_size=VOCAB, dtype=torch.float64)
    state: State = scheduler.start(setup)
    known = given.pop("known", [torch.ones_like(masked)] * len(steps))
    decisions = []
    for index, candidates in enumerate(steps):
        seen = {"state": state, "known": known[index], "block_step": index}
        view = view_of(masked & known[index], **seen, **given)
        decision = scheduler.decide(candidates, view)
        everybody = torch.ones(rows, dtype=torch.bool)
        state = merged(state, decision.state, decision.replaced, everybody)
        decisions.append(replace(decision, state=state))
    return decisions


def run(scheduler: Any, name: str = "llada_gqa", **options: Any) -> Any:
    slots: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "at_eos": "ignore"}
    prompts = options.pop("prompts", random_prompts(4))
    return dllm.generate(golden_model(name), prompts, scheduler=scheduler, **{**slots, **options})


def counts(out: Any, row: int = 0) -> list[int]:
    return [len(step) for step in out.trace.commits(row)]


# KLASS


def test_logits_of_some_columns_decide_as_those_of_all() -> None:
    masked = torch.ones(2, 4, dtype=torch.bool)
    torch.manual_seed(0)
    places = [torch.tensor(at) for at in ([[0, 1], [2, 3]], [[1, 2], [3, 0]], [[1, 0], [3, 2]])]
    whole, narrow, known = [], [], []
    for at in [*places, places[2], places[2], places[0]]:
        logits = torch.randn(2, 4, VOCAB, dtype=torch.float64) / 50
        logits[..., 3] += 6
        token = logits.argmax(-1)
        whole.append(Candidates(logits, token))
        some = logits.gather(1, at[..., None].expand(-1, -1, VOCAB))
        narrow.append(Candidates(some, token, places=at))
        known.append(torch.zeros_like(masked).scatter(1, at, True))
    scheduler = Klass(threshold=0.6, kl_threshold=0.01)
    both = [follow(scheduler, steps, masked, known=list(known)) for steps in (whole, narrow)]
    for one, other in zip(*both, strict=True):
        assert torch.equal(one.commit, other.commit)
        assert one.state is not None
        assert other.state is not None
        for name, value in one.state.items():
            slots = slice(0, -1) if name == "log_probability" else slice(None)
            torch.testing.assert_close(value[:, slots], other.state[name][:, slots])
    assert both[0][-2].commit.sum() > 2  # something was stable


@pytest.mark.parametrize("history", [1, 2, 3])
def test_a_still_column_is_stable_after_its_history(history: int) -> None:
    masked = torch.ones(1, 3, dtype=torch.bool)
    still = spread([[[0.8], [0.7], [0.4]]])
    steps = follow(Klass(threshold=0.6, history=history), [still] * 5, masked)
    # The first step has nothing to compare with, so there are `history` + 1 of them.
    expected = [[True, False, False]] * history + [[True, True, False]] * (5 - history)
    assert [step.commit.tolist()[0] for step in steps] == expected


def test_divergence_by_hand() -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    before, now = [[[0.5, 0.5], [0.99, 0.01]]], [[[0.9, 0.1], [0.99, 0.01]]]
    moved = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    for bound, passes in ((moved - 1e-6, False), (moved + 1e-6, True)):
        scheduler = Klass(threshold=0.6, kl_threshold=bound, history=1)
        *_, last = follow(scheduler, [spread(before), spread(now)], masked)
        assert last.commit.tolist() == [[passes, True]]


def test_what_a_pass_did_not_compute_loses_its_history() -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    seen, hidden = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    still = spread([[[0.8], [0.9]]])
    known = [seen, seen, seen, hidden, seen, seen, seen]
    steps = follow(Klass(threshold=0.6), [still] * 7, masked, known=known)
    # As long as none is stable the surest one goes, here the second.
    assert [step.commit.tolist()[0] for step in steps] == [
        *([False, True], [False, True], [True, True]),
        *([True, False], [True, False], [True, True], [True, True]),
    ]


def test_later_blocks_are_watched_but_not_committed() -> None:
    masked = torch.ones(1, 4, dtype=torch.bool)
    block = torch.tensor([[True, True, False, False]])
    still = spread([[[0.8], [0.7], [0.9], [0.9]]])
    scheduler = Klass(threshold=0.6)
    steps = follow(scheduler, [still] * 4, masked, block=block)
    assert steps[-1].commit.tolist() == [[True, True, False, False]]
    state = steps[-1].state
    assert state is not None
    entered = view_of(masked & ~block, state=state, block=~block)
    assert scheduler.decide(still, entered).commit.tolist() == [[False, False, True, True]]


def test_history_crosses_blocks_only_where_a_pass_computes_them() -> None:
    scheduler = "klass:0.2,kl_threshold=20"  # all that has a history is stable

    def first_of_blocks(cache: str) -> list[int]:
        out, found, filled = run(scheduler, cache=cache, prompts=random_prompts(1)), [], 0
        for count in counts(out):
            if filled % 8 == 0:
                found.append(count)
            filled += count
        return found

    everything, frozen = first_of_blocks("none"), first_of_blocks("dual")
    assert everything[0] == frozen[0] == 1
    assert max(everything[1:]) > 1
    assert frozen[1:] == [1, 1]


def test_klass_commits_one_or_what_is_sure() -> None:
    out = run("klass:0.35,kl_threshold=0.5")
    several = 0
    for row in range(4):
        numbers = counts(out, row)
        for column, step in enumerate(out.trace.commit_step[row].tolist()):
            if step >= 0 and numbers[step] > 1:
                several += 1
                assert out.trace.confidence[row, column] >= 0.35
    assert several > 0


# Credit


def fused(first: float, credit: float, weight: float = 0.7) -> float:
    """Returns the probability of a token after its logit gained from a credit."""
    raised = first * (1 + credit) ** weight
    return raised / (raised + 1 - first)


def test_credit_by_hand() -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    still = spread([[[0.6], [0.5]]])
    vote = [0.6**0.2, 0.5**0.2]
    for steps in (1, 2, 5):
        total = [sum(v * 0.8**k for k in range(steps)) for v in vote]
        chance = [fused(p, c) for p, c in zip((0.6, 0.5), total, strict=True)]
        for threshold, both in ((chance[1] - 1e-9, True), (chance[1] + 1e-9, False)):
            *_, last = follow(Credit(threshold), [still] * steps, masked)
            assert last.commit.tolist() == [[True, both]]
            assert last.state is not None
            assert last.state["credit"][0, :, 0].tolist() == pytest.approx(total)


def test_without_memory_only_the_current_vote_counts() -> None:
    masked = torch.ones(1, 1, dtype=torch.bool)
    *_, last = follow(Credit(decay=0), [spread([[[0.6]]])] * 4, masked)
    assert last.state is not None
    assert last.state["credit"][0, 0, 0] == pytest.approx(0.6**0.2)


def test_a_token_with_credit_wins_over_a_newcomer() -> None:
    masked = torch.ones(1, 1, dtype=torch.bool)
    first, later = spread([[[0.6, 0.3]]]), spread([[[0.4, 0.45]]])
    decisions = follow(Credit(), [first] * 3 + [later], masked)
    tokens = [decision.tokens for decision in decisions if decision.tokens is not None]
    assert [int(token) for token in tokens] == [0, 0, 0, 0]
    assert int(later.token) == 1


def test_committed_columns_get_no_credit() -> None:
    masked = torch.tensor([[True, False]])
    (only,) = follow(Credit(), [spread([[[0.6], [0.6]]])], masked)
    assert only.state is not None
    assert only.state["credit"][0, 1].sum() == 0


def test_the_mask_token_is_never_proposed() -> None:
    masked = torch.ones(1, 1, dtype=torch.bool)
    logits = torch.zeros(1, 1, VOCAB, dtype=torch.float64)
    logits[..., 3], logits[..., MASK] = 1, 5
    steps = [Candidates(logits, torch.tensor([[3]]))] * 3
    for decision in follow(Credit(), steps, masked):
        assert decision.tokens is not None
        assert decision.tokens.tolist() == [[3]]


def test_sampled_and_deferred_proposals_stay() -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    drawn = spread([[[0.6, 0.3], [0.6, 0.3]]], token=[[1, 0]])
    (only,) = follow(Credit(), [drawn], masked)
    assert only.tokens is not None
    assert only.tokens.tolist() == [[1, 0]]
    deferred = replace(drawn, logits=drawn.logits.index_fill(2, torch.tensor([1]), -torch.inf))
    (only,) = follow(Credit(0.5), [deferred], masked)
    assert only.tokens is not None
    assert only.tokens.tolist() == [[1, 0]]
    assert only.commit.tolist() == [[False, True]]


def test_credits_begin_anew_with_each_block() -> None:
    masked = torch.ones(1, 2, dtype=torch.bool)
    scheduler, still = Credit(), spread([[[0.6], [0.5]]])
    *_, last = follow(scheduler, [still] * 4, masked)
    assert last.state is not None
    # The cache may have decided the block's first step: then the scheduler's own is the second.
    entered = view_of(masked, block_step=1, state=last.state, fresh=torch.tensor([True]))
    after = scheduler.decide(still, entered).state
    assert after is not None
    assert after["credit"].sum() == pytest.approx(0.6**0.2 + 0.5**0.2)


@dataclass(frozen=True)
class Watched(Credit):
    """Notes the credit of each row after each step."""

    notes: list[list[tuple[int, float]]] = field(default_factory=list)

    def select(self, candidates: Candidates, view: View) -> Decision:
        decision = super().select(candidates, view)
        assert decision.state is not None
        most = decision.state["credit"].amax((1, 2)).tolist()
        self.notes.append(list(zip(view.block_step.tolist(), most, strict=True)))
        return decision


@pytest.mark.parametrize("cache", ["none", "prefix", "prefix:first_token=force"])
def test_no_block_inherits_credit(cache: str) -> None:
    scheduler = Watched(threshold=1.0)  # one token a step, so credits grow
    run(scheduler, "dream_gqa", cache=cache, prompts=random_prompts(1))
    first = 1 if "force" in cache else 0
    begun = [credit for ((step, credit),) in scheduler.notes if step == first]
    assert len(begun) == 3
    assert max(begun) <= 1, "a single vote is at most 1"
    assert max(credit for ((_, credit),) in scheduler.notes) > 1.5


@settings(deadline=None, max_examples=30)
@given(
    chance=st.floats(0.05, 0.95),
    decay=st.floats(0, 0.99),
    growth=st.floats(0.1, 2),
    weight=st.floats(0, 2),
)
def test_a_standing_proposal_only_gets_surer(
    chance: float, decay: float, growth: float, weight: float
) -> None:
    masked = torch.ones(1, 1, dtype=torch.bool)
    scheduler = Credit(weight=weight, decay=decay, growth=growth)
    total, before = 0.0, 0.0
    still = spread([[[chance]]])
    for decision in follow(scheduler, [still] * 6, masked):
        assert decision.state is not None
        total = float(decision.state["credit"].sum())
        assert total >= before - 1e-12
        before = total
    assert total <= 1 / (1 - decay) + 1e-9


@pytest.mark.few(3)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "prefix:first_token=force"])
@pytest.mark.parametrize("scheduler", ["klass:0.3,kl_threshold=1", "credit:0.5"])
def test_rows_carry_their_own_state(scheduler: str, cache: str) -> None:
    prompts = random_prompts(5)
    together = run(scheduler, "dream_gqa", cache=cache, prompts=prompts)
    for row, prompt in enumerate(prompts):
        alone = run(scheduler, "dream_gqa", cache=cache, prompts=[prompt])
        assert together.sequences[row] == alone.sequences[0]
        assert counts(together, row) == counts(alone)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("klass:history=0", "history=0 must be at least 1"),
        ("credit:decay=1", r"decay=1 must be in \[0, 1\)"),
        ("klass@llada_mpbb", "did you mean 'llada_mbpp'"),
    ],
)
def test_wrong_options_are_explained(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dllm.schedulers.registry.create(given)


def test_presets_are_those_of_the_tasks() -> None:
    create = dllm.schedulers.registry.create
    assert create("klass@llada_gsm8k") == Klass(threshold=0.6, kl_threshold=0.015)
    assert create("klass@dream_mbpp:history=3") == Klass(0.9, 0.001, 3)
