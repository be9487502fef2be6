"""Prophet: when the answer is settled, where it stands, and what is then written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm import schedulers
from dllm.schedulers.fixed_quota import FixedQuota
from dllm.schedulers.prophet import Prophet
from dllm.settings import resolve
from dllm.state.candidates import Candidates, Sampling
from dllm.state.noise import CounterNoise
from tests.support.models import MODELS, golden_model, random_prompts
from tests.support.views import MASK, view_of

create = schedulers.registry.create
CACHES = ("none", "prefix", "dual")


def gaps(each: list[list[float]]) -> Candidates:
    """Candidates over all tokens, of which the first leads by the given logit."""
    lead = torch.tensor(each)
    rest = torch.zeros(*lead.shape, MASK)
    return Candidates(torch.cat([lead[..., None], rest], -1), torch.zeros(lead.shape).long())


def masked_from(first: int, width: int = 10) -> Tensor:
    return torch.arange(width)[None] >= first


def fires(scheduler: Prophet, gap: float, first_mask: int, **view: Any) -> bool:
    """Whether a row whose columns from `first_mask` on are masks is committed as a whole."""
    masked = masked_from(first_mask)
    commit = scheduler.decide(gaps([[gap] * 10]), view_of(masked, **view)).commit
    assert int(commit.sum()) in (1, int(masked.sum()))
    return bool(torch.equal(commit, masked))


@pytest.mark.parametrize(
    ("committed", "needed"), [(0, 7.5), (3, 7.5), (4, 5.0), (6, 5.0), (7, 2.5), (8, 2.5)]
)
def test_the_threshold_falls_with_what_is_committed(committed: int, needed: float) -> None:
    assert fires(Prophet(), needed, committed)
    assert not fires(Prophet(), needed - 0.01, committed)


@pytest.mark.parametrize(
    ("steps_done", "first_step", "needed"),
    [(0, 0, 7.5), (32, 0, 7.5), (33, 0, 5.0), (32, 1, 5.0), (66, 0, 5.0), (67, 0, 2.5)],
)
def test_the_threshold_falls_with_forwards(steps_done: int, first_step: int, needed: float) -> None:
    scheduler = Prophet(FixedQuota(steps=100), progress="steps", first_step=first_step)
    assert fires(scheduler, needed, 4, steps_done=steps_done)
    assert not fires(scheduler, needed - 0.01, 4, steps_done=steps_done)


def test_steps_of_the_innermost_scheduler_count() -> None:
    inner = create("adablock:inner=fixed_quota:100")
    scheduler = Prophet(inner, progress="steps")
    assert not fires(scheduler, 6.0, 4, steps_done=10)  # of ten slots it would be the last
    assert fires(scheduler, 6.0, 4, steps_done=33)


def test_the_gap_is_the_mean_over_the_answer_decoded_columns_included() -> None:
    scheduler = Prophet(region="fixed", answer_start=3, answer_length=4)
    masked = masked_from(5)
    each = [0.0, 0, 0, 9, 9, 2, 2, 0, 0, 0]  # columns 3 to 6: 5.5 in the mean
    assert scheduler.decide(gaps([each]), view_of(masked)).commit.sum() == 5
    each[4] = 6.9  # 4.975
    assert scheduler.decide(gaps([each]), view_of(masked)).commit.sum() == 1


def test_an_answer_at_the_end_is_cut_and_one_beyond_it_never_settled() -> None:
    each = gaps([[0.0] * 8 + [9, 9]])
    masked = masked_from(0)
    at_end = Prophet(region="fixed", answer_start=8)
    assert at_end.decide(each, view_of(masked)).commit.all()
    beyond = Prophet(high=-9, mid=-9, low=-9, region="fixed", answer_start=10)
    assert beyond.decide(each, view_of(masked)).commit.sum() == 1


def test_rows_are_settled_one_by_one() -> None:
    masked = masked_from(2).expand(3, -1)
    each = gaps([[9.0] * 10, [7.0] * 10, [9.0] * 10])
    commit = Prophet().decide(each, view_of(masked)).commit
    assert commit.sum(1).tolist() == [8, 1, 8]


def test_an_answer_without_logits_in_this_pass_is_not_judged() -> None:
    scheduler = Prophet(region="fixed", answer_start=4, answer_length=3)
    known = torch.ones(1, 10, dtype=torch.bool)
    known[0, 6] = False
    masked = masked_from(3) & known
    each = gaps([[9.0] * 10])
    assert scheduler.decide(each, view_of(masked, known=known)).commit.sum() == 1
    elsewhere = replace(scheduler, answer_length=2)
    settled = elsewhere.decide(each, view_of(masked, known=known)).commit
    assert torch.equal(settled, masked)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ([4, 5, 6, None, None, None, None, None], [3, 4]),
        ([5, 6, 1, 5, 6, None, None, None], [5, 6]),  # the last one counts
        ([5, 6, 1, 5, None, None, None, None], [2, 3]),  # not one that is not there in full
        ([None, None, None, None, None, None, 5, 6], []),  # nothing follows
        ([None, 5, 6, 2, 2, None, None, None], [3, 4]),  # decoded columns belong to the answer
        ([None, None, None, None, None, 5, 6, None], [7]),
        ([6, 5, None, 6, None, None, None, None], []),
    ],
)
def test_the_answer_follows_the_marker(text: list[int | None], answer: list[int]) -> None:
    scheduler = Prophet(region="marker", marker=(5, 6), answer_length=2)
    tokens = torch.tensor([[MASK if token is None else token for token in text]])
    masked = tokens == MASK
    for column in range(8):  # a single column outside of the answer, or inside, is unsettled
        each = [9.0] * 8
        each[column] = -20.0 if column in answer else 0.0
        settled = scheduler.decide(gaps([each]), view_of(masked, tokens=tokens)).commit
        expected = bool(answer) and column not in answer
        assert torch.equal(settled, masked) == expected


def test_a_marker_is_looked_for_in_the_generated_text_alone() -> None:
    tokens = torch.tensor([[5, 6, 1, MASK, MASK, MASK, 5, 6]])
    masked = tokens == MASK
    fixed = torch.tensor([[True] * 3 + [False] * 3 + [True] * 2])
    view = view_of(
        masked,
        tokens=tokens,
        fixed=fixed,
        prompt_length=torch.tensor([3]),
        length=torch.tensor([6]),
    )
    scheduler = Prophet(region="marker", marker=(5, 6))
    assert scheduler.decide(gaps([[9.0] * 8]), view).commit.sum() == 1
    planted = replace(view, prompt_length=torch.tensor([0]))  # given text after the prompt counts
    assert scheduler.decide(gaps([[9.0] * 8]), planted).commit.sum() == 3
    long = Prophet(region="marker", marker=(5,) * 20)
    assert long.decide(gaps([[9.0] * 8]), planted).commit.sum() == 1


def test_the_gap_is_read_before_temperature_and_filters() -> None:
    logits = torch.tensor([[[4.0, 1.0, 0.0, 2.0], [1.0, 1.5, 9.0, 0.5]]])
    noise, columns = CounterNoise(torch.tensor([0])), torch.tensor([[0, 1]])
    for shape in ({"temperature": 0.2}, {"top_p": 0.5}, {"top_k": 1}):
        for source in ("raw", "tempered"):
            sampling = Sampling(mask_token_id=2, confidence=source, **shape)
            found = sampling.propose(logits, noise, columns, torch.tensor([0]))
            assert found.gap.tolist() == [[2.0, 7.5]]
            assert found.at(torch.tensor([[1]])).gap.tolist() == [[7.5]]
            assert found.of_rows(torch.tensor([0, 0])).gap.tolist() == [[2.0, 7.5]] * 2


def run(scheduler: Any, name: str = "llada_gqa", **options: Any) -> Any:
    slots: dict[str, Any] = {"max_new_tokens": 32, "block_length": 8, "at_eos": "ignore"}
    prompts = random_prompts(3)
    return dllm.generate(golden_model(name), prompts, scheduler=scheduler, **{**slots, **options})


def forwards(out: Any) -> list[int]:
    return [row.forwards for row in out.metrics.rows]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "inner", ["fixed_quota", "dream", "klass", "multi_block", "ete", "lopa", "wino", "adablock"]
)
def test_around_any_scheduler_the_row_ends_at_once(inner: str, cache: str) -> None:
    out = run(f"prophet:inner={inner},high=-1", cache=cache)
    assert forwards(out) == [1, 1, 1]
    assert out.sequences == run("threshold:0", block_length=32).sequences


def test_filters_of_the_inner_method_do_not_settle_an_answer() -> None:
    never = "prophet:inner=dream,high=1e6,mid=1e6,low=1e6"
    out = run(never, name="dream_gqa", top_p=0.5)
    assert out.sequences == run("dream", name="dream_gqa", top_p=0.5).sequences
    assert min(forwards(out)) > 16


@pytest.mark.few(1)
@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=2)
@given(
    thresholds=st.lists(st.floats(0, 6), min_size=3, max_size=3).map(sorted),
    raised=st.floats(0, 3),
    region=st.sampled_from(["rest", "fixed"]),
)
def test_a_higher_threshold_never_ends_sooner(
    name: str, thresholds: list[float], raised: float, region: str
) -> None:
    low, mid, high = thresholds
    given = {"name": "prophet", "region": region, "answer_start": 20}
    early = run({**given, "high": high, "mid": mid, "low": low}, name)
    late = run({**given, "high": high + raised, "mid": mid + raised, "low": low + raised}, name)
    base = run("fixed_quota", name)
    for row in range(3):
        count = forwards(early)[row]
        assert count <= forwards(late)[row] <= forwards(base)[row]
        # Until then it is the inner scheduler's run.
        assert early.trace.commits(row)[: count - 1] == base.trace.commits(row)[: count - 1]
        assert len(early.trace.commits(row)[-1]) == 32 - (count - 1)


@pytest.mark.few(1)
@pytest.mark.parametrize(("cache", "expected"), [("none", 12), ("prefix", 12), ("dual", 13)])
def test_masks_without_logits_wait_for_the_next_full_pass(cache: str, expected: int) -> None:
    scheduler = {
        "name": "prophet",
        "inner": "fixed_quota:steps=32",
        "high": 1e9,
        "mid": -1,
        "progress": "steps",
        "region": "fixed",
        "answer_start": 8,
    }
    # A third of 32 steps is over at the twelfth, in the second block, which holds the answer. With
    # `dual` that pass feeds the block alone, and the next one everything.
    assert forwards(run(scheduler, cache=cache)) == [expected] * 3
    first = {**scheduler, "answer_start": 0}  # no cache computes the first block again
    assert forwards(run(first, cache=cache)) == [12 if cache == "none" else 17] * 3


def test_planted_words_lead_to_the_answer() -> None:
    planted = {20: 5, 21: 17, 22: 33}
    scheduler = "prophet:region=fixed,answer_start=23,high=1.5,mid=1,low=0.5"
    out = run(scheduler, fixed=planted)
    assert max(forwards(out)) < 29
    for prompt, sequence in zip(random_prompts(3), out.sequences, strict=True):
        assert {slot: sequence[len(prompt) + slot] for slot in planted} == planted
    # No word of what is planted may be the only one that is known: the answer comes after.
    assert forwards(run(f"{scheduler},marker=33", fixed=planted)) == forwards(out)
    by_marker = scheduler.replace("fixed", "marker") + ",marker=[5, 17, 33]"
    assert run(by_marker, fixed=planted).sequences == out.sequences


def test_steps_beside_a_wrapper_go_to_the_scheduler_that_has_them() -> None:
    def built(**given: Any) -> Any:
        return resolve({}, None, given).scheduler

    assert built(scheduler="prophet", steps=16) == Prophet(FixedQuota(steps=16))
    assert built(scheduler="prophet:low=1", steps=16).low == 1
    nested = built(scheduler="prophet:inner=adablock:inner=fixed_quota", steps=8)
    assert nested.inner.inner == FixedQuota(steps=8)
    dream = built(scheduler="prophet:inner=dream", steps=8, alg_temp=0.5, eps=0.01).inner
    assert (dream.steps, dream.order_temperature, dream.epsilon) == (8, 0.5, 0.01)
    assert built(scheduler="dream", steps=8).steps == 8
    with pytest.raises(ValueError, match="'threshold' has no option 'steps'"):
        built(scheduler="prophet:inner=threshold", steps=16)
    assert forwards(run("prophet:high=99,mid=99,low=99", steps=16)) == [16] * 3


def test_markers_are_written_as_lists() -> None:
    expected = Prophet(region="marker", marker=(5, 6))
    assert create("prophet:region=marker,marker=[5, 6]") == expected
    assert create("prophet:marker=[5, 6],region=marker") == expected
    assert create({"name": "prophet", "region": "marker", "marker": [5, 6]}) == expected
    assert create("prophet:region=marker,marker=5").summary()["marker"] == (5,)
    for wrong in ("[5, word]", "word", "[5, 6.5]"):
        with pytest.raises(ValueError, match=r"marker=.* must be a list of token ids"):
            create(f"prophet:region=marker,marker={wrong}")


def test_wrong_options_are_explained() -> None:
    for wrong, message in (
        ("prophet:region=marker", "needs marker="),
        ("prophet:answer_length=0", "answer_length=0 must be at least 1"),
        ("prophet:answer_start=-1", "answer_start=-1 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            create(wrong)


@pytest.mark.parametrize(
    ("preset", "thresholds"),
    [
        ("choice", (7.5, 5.0, 2.5)),
        ("gsm8k", (8.0, 5.0, 3.5)),
        ("gpqa", (8.0, 5.0, 3.5)),
        ("code", (7.5, 5.0, 4.5)),
        ("sudoku", (7.5, 5.0, 2.5)),
        ("countdown", (7.5, 5.0, 2.5)),
        ("authors_code", (7.5, 5.0, 2.5)),
    ],
)
def test_presets(preset: str, thresholds: tuple[float, float, float]) -> None:
    built: Any = create(f"prophet@{preset}")
    assert (built.high, built.mid, built.low) == thresholds
