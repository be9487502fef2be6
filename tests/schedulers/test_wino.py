"""WINO: what is committed, what is masked again, and what its shadows see."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm.schedulers.wino import Wino
from dllm.state.candidates import Candidates
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.models import Poisoned, golden_model, random_prompts
from tests.support.views import MASK, SETUP, view_of

CACHES = ("none", "prefix", "dual", "dual:vicinity_before=3,vicinity_after=24")
EAGER = "wino:0.3,threshold_back=0.7"


def run(scheduler: Any, name: str = "llada_gqa", rows: int = 4, **options: Any) -> Any:
    slots: dict[str, Any] = {"max_new_tokens": 32, "block_length": 16, "at_eos": "ignore"}
    model = options.pop("model", golden_model(name))
    return dllm.generate(model, random_prompts(rows), scheduler=scheduler, **{**slots, **options})


def likely(first: Any) -> Candidates:
    """Candidates over all tokens, of which the first has the given probability."""
    chance = torch.tensor(first, dtype=torch.float64)[..., None]
    rest = ((1 - chance) / MASK).expand(*chance.shape[:-1], MASK)
    return Candidates(torch.cat([chance, rest], -1).log(), torch.zeros(chance.shape[:-1]).long())


def step(scheduler: Wino, masked: Tensor, sure: Any, support: Any, **view: Any) -> Any:
    """Decides on a block in which every column that is not masked holds token 0."""
    state = {"accepted": torch.full((masked.shape[0],), view.pop("accepted", 30))}
    given = {"state": state, "shadow": likely(support), "block_step": 1, **view}
    return scheduler.decide(likely(sure), view_of(masked, **given))


def test_a_step_by_hand() -> None:
    scheduler = Wino(threshold=0.6, threshold_back=0.9, share=0.5, least=2, most=3)
    masked = torch.tensor([[True, True, True, True, False, False, False, False]])
    sure = [[0.7, 0.95, 0.8, 0.6, 0.5, 0.5, 0.5, 0.5]]
    support = [[0.1, 0.1, 0.1, 0.1, 0.95, 0.3, 0.2, 0.8]]
    # Three columns pass, 0.6 itself does not; half of four masks may go: the two surest.
    decision = step(scheduler, masked, sure, support)
    assert decision.commit.tolist() == [[False, True, True, False] + [False] * 4]
    # Three tokens have less than 0.9. What was committed just now is not judged.
    assert decision.remask.tolist() == [[False] * 5 + [True, True, True]]
    assert decision.state["accepted"].tolist() == [2]
    # The step before committed three tokens: two may go, those with the least support.
    fewer = step(scheduler, masked, sure, support, accepted=3)
    assert fewer.remask.tolist() == [[False] * 5 + [True, True, False]]
    assert not step(scheduler, masked, sure, support, accepted=1).remask.any()
    # A block's first step may judge what stands there, whatever the last block's end was like.
    assert step(scheduler, masked, sure, support, accepted=1, block_step=0).remask.sum() == 3


def test_a_single_commit_masks_nothing_again() -> None:
    masked = torch.tensor([[True, True, False, False]])
    unsure = step(Wino(), masked, [[0.4, 0.5, 0.9, 0.9]], [[0.1] * 4])
    assert unsure.commit.tolist() == [[False, True, False, False]]
    assert not unsure.remask.any()


def test_given_text_is_never_masked() -> None:
    masked = torch.tensor([[True, True, False, False]])
    fixed = torch.tensor([[False, False, True, False]])
    decision = step(Wino(), masked, [[0.9] * 4], [[0.1] * 4], fixed=fixed)
    assert decision.remask.tolist() == [[False, False, False, True]]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    threshold=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    threshold_back=st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    width=st.integers(1, 24),
)
def test_a_block_takes_no_more_steps_than_columns(
    seed: int, threshold: float, threshold_back: float, width: int
) -> None:
    """Whatever the model says in each step: here, anything."""
    source = torch.Generator().manual_seed(seed)
    scheduler = Wino(threshold=threshold, threshold_back=threshold_back)
    tokens = torch.full((3, width), MASK)
    state = scheduler.start(replace(SETUP, num_rows=3, width=width))
    for done in range(width):
        masked = tokens == MASK
        sure, support = (torch.rand(3, width, generator=source).tolist() for _ in range(2))
        view = view_of(masked, block_step=done, state=state, tokens=tokens, shadow=likely(support))
        decision = scheduler.decide(likely(sure), view)
        assert decision.remask is not None
        assert decision.state is not None
        assert not (decision.commit & decision.remask).any(), "committed and masked in one step"
        assert not (decision.commit & ~masked).any()
        assert not (decision.remask & masked).any()
        state = decision.state
        tokens = torch.where(decision.commit, 0, torch.where(decision.remask, MASK, tokens))
        # n steps leave at least n tokens, so `revision_limit` is never what ends a block.
        assert ((tokens != MASK).sum(1) >= min(done + 1, width)).all()
    assert not (tokens == MASK).any()


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", CACHES)
def test_what_is_masked_again_is_in_the_trace(cache: str) -> None:
    out = run(EAGER, cache=cache)
    written = [out.trace.commits(row) for row in range(4)]
    again = [sum(token == 126 for _, token in writes) for row in written for writes in row]
    assert sum(again) > 0, "nothing was masked again: the test shows nothing"
    for row, prompt in enumerate(random_prompts(4)):
        assert all(column >= len(prompt) for writes in written[row] for column, _ in writes)
        assert out.metrics.rows[row].forwards <= 32
        *_, final = out.trace.replay(row)
        assert tuple(final[: len(prompt) + 32]) == out.sequences[row]


@pytest.mark.parametrize("cache", CACHES)
def test_without_a_threshold_back_nothing_is_masked_again(cache: str) -> None:
    out = run("wino:0.3,threshold_back=0", cache=cache)
    writes = [write for row in range(4) for step in out.trace.commits(row) for write in step]
    assert len(writes) == len({(row, *write) for row, write in enumerate(writes)}) == 4 * 32
    assert all(token != 126 for _, token in writes)


class Recorded:
    """A model that keeps what it was fed, and its store as it was before each pass."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model
        self.passes: list[tuple[Tensor, StepPlan, KVStore | None, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        before = copy.deepcopy(store)
        logits = self.model.forward(tokens, plan, store)
        self.passes.append((tokens.clone(), plan, before, logits))
        return logits


def num_shadows(plan: StepPlan) -> int:
    """Returns how many columns are fed twice: as many as the window has."""
    return plan.logit_rows.shape[1] // 2


def without_shadows(plan: StepPlan, num_columns: int) -> StepPlan:
    count, attend = num_shadows(plan), plan.attention_mask
    assert attend is not None
    if plan.stored is None:  # all that is fed, and nothing else, is seen
        num_columns = plan.positions.shape[1] - count
    return replace(
        plan,
        positions=plan.positions[:, :-count],
        logit_rows=plan.logit_rows[:, :-count],
        num_keys=num_columns,
        attention_mask=attend[:, :-count, :num_columns],
        stored=None if plan.stored is None else plan.stored[:, :-count],
    )


@pytest.mark.few(1)
@torch.inference_mode()
@pytest.mark.parametrize("cache", CACHES)
def test_ordinary_columns_do_not_see_shadows(cache: str) -> None:
    model = golden_model("llada_gqa")
    recorded: Any = Recorded(model)
    run(EAGER, model=recorded, cache=cache, block_length=8)
    num_columns = max(map(len, random_prompts(4))) + 32
    assert len(recorded.passes) > 8
    for tokens, plan, before, logits in recorded.passes:
        plain = without_shadows(plan, num_columns)
        width = plain.positions.shape[1]
        expected = model.forward(tokens[:, :width], plain, before)
        torch.testing.assert_close(logits[:, : expected.shape[1]], expected, rtol=0, atol=1e-12)


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", CACHES)
def test_shadows_have_slots_of_their_own(cache: str) -> None:
    recorded: Any = Recorded(golden_model("llada_gqa"))
    run(EAGER, model=recorded, cache=cache, block_length=8)
    for _, plan, store, _ in recorded.passes:
        if store is not None:
            slots = store.slots(plan.stored)
            kept = slots[slots < store.scratch]
            shadows = slots[:, -num_shadows(plan) :]
            assert (kept[:, None] == shadows.flatten()).sum(0).eq(1).all()


@torch.inference_mode()
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_shadow_does_not_see_the_token_it_judges(cache: str) -> None:
    """In one layer; in more, the columns around it have seen the token, in WINO's own code too."""
    whole = golden_model("llada_gqa")
    network = copy.deepcopy(whole.network)
    network.blocks = network.blocks[:1]
    model = replace(whole, network=network)
    recorded: Any = Recorded(model)
    run(EAGER, model=recorded, cache=cache, rows=3)
    tokens, plan, before, logits = recorded.passes[4]
    count = num_shadows(plan)
    changed = 0
    for place in range(count):
        at = plan.positions[:, :-count] == plan.positions[:, -count + place, None]
        other = tokens.clone()
        other[:, :-count] = torch.where(at, (tokens[:, :-count] + 7) % 120, tokens[:, :-count])
        again = model.forward(other, plan, copy.deepcopy(before))[:, -count:]
        moved = (again - logits[:, -count:]).abs().amax(-1) > 0
        assert not moved[:, place].any()
        changed += int(moved.sum())
    assert changed > 0, "no shadow sees its neighbours"


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_shadows_read_nothing_stale(cache: str) -> None:
    poisoned: Any = Poisoned(golden_model("llada_gqa"))
    assert run(EAGER, model=poisoned, cache=cache).sequences == run(EAGER, cache=cache).sequences


@pytest.mark.few(1)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_wrapper_that_sees_the_whole_row_changes_nothing(cache: str) -> None:
    never = {"high": 1e9, "mid": 1e9, "low": 1e9}
    wrapped = run({"name": "prophet", "inner": EAGER, **never}, cache=cache, block_length=8)
    alone = run(EAGER, cache=cache, block_length=8)
    assert wrapped.sequences == alone.sequences
    assert wrapped.trace.changes == alone.trace.changes


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("dream_gqa", {}, "logit_shift=1"),
        ("llada_gqa", {"attention": "causal"}, "attention='causal'"),
    ],
)
def test_models_without_shadows_are_refused(name: str, given: Any, reason: str) -> None:
    model = golden_model(name)
    with pytest.raises(ValueError, match=reason):
        run("wino", model=replace(model, spec=replace(model.spec, **given)))
