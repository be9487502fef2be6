"""What lies exactly on a boundary, each case small enough to check by hand."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

import dllm
from dllm import schedulers
from dllm.cache import registry as caches
from dllm.decoding.passes import PassRecord
from dllm.eval.run.summary import summarise
from dllm.generate import Stream
from dllm.metrics import Meter
from dllm.models.wrap import GuidedModel
from dllm.schedulers import Decision
from dllm.settings import Settings
from dllm.state.candidates import Candidates, Sampling, best, rank
from dllm.state.noise import CounterNoise
from dllm.state.plan import PassShape, StepPlan
from dllm.state.progress import Progress
from dllm.state.rows import copied
from dllm.state.variants import Variants
from tests.support.models import golden_model, random_prompts
from tests.support.runs import result
from tests.support.views import candidates_of, view_of

END = 126
SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}
ALL = torch.ones(1, 4, dtype=torch.bool)


def decide(scheduler: Any, candidates: Candidates, masked: Any = ALL, **view: Any) -> Decision:
    return schedulers.registry.create(scheduler).decide(candidates, view_of(masked, **view))


def commits(scheduler: Any, confidence: list[float], **view: Any) -> list[bool]:
    columns = decide(scheduler, candidates_of([confidence]), **view).commit[0].tolist()
    return [bool(column) for column in columns]


@pytest.mark.parametrize("at_eos", ["stop", "skip", "block", "truncate"])
def test_an_end_token_of_the_prompt_ends_nothing(at_eos: Any) -> None:
    out = dllm.generate(
        golden_model("llada_gqa"), [[5, 13, 7]], eos_token_id=13, forbid_eos=True, at_eos=at_eos,
        **SLOTS,
    )  # fmt: skip
    (row,) = out.metrics.rows
    assert (row.finish_reason, row.valid_tokens) == ("length", 16)
    assert row.forwards > 1


def test_an_end_token_of_given_text_ends_nothing() -> None:
    for at_eos in ("ignore", "stop", "block", "truncate"):
        out = dllm.generate(
            golden_model("llada_gqa"), [[5, 7]], fixed={3: 13}, eos_token_id=13, forbid_eos=True,
            at_eos=at_eos, **SLOTS,
        )  # fmt: skip
        (row,) = out.metrics.rows
        assert (row.finish_reason, row.valid_tokens, row.raw_tokens) == ("length", 15, 15)


def test_an_empty_answer_ended() -> None:
    every = [token for token in range(125) if token]
    out = dllm.generate(golden_model("llada_gqa"), [[5, 7]], eos_token_id=every, **SLOTS)
    (row,) = out.metrics.rows
    assert (row.finish_reason, row.valid_tokens) == ("eos", 0)


def test_a_threshold_is_passed_by_what_equals_it() -> None:
    even = Candidates(torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.int64))
    assert even.confidence.tolist() == [[0.5] * 4]
    for passes in ("threshold:0.5", "localleap:0.5", "quota_threshold:0.5,steps=1"):
        assert decide(passes, even).commit.sum() == 4, passes
    for above in ("lopa:0.5,branches=1", "dimple:0.5,steps=64"):
        assert decide(above, even).commit.sum() == 1, above
    assert decide(
        {"name": "localleap", "threshold": 0.5, "relaxed_threshold": 0.5}, even
    ).commit.all()


def test_relaxed_columns_are_those_within_the_radius() -> None:
    given = {"name": "localleap", "threshold": 0.9, "relaxed_threshold": 0.5, "radius": 2}
    assert commits(given, [0.99, 0.6, 0.6, 0.6]) == [True, True, True, False]


def test_an_entropy_bound_is_passed_by_what_equals_it() -> None:
    assert commits("entropy_bound:0", [1.0, 1.0, 0.5, 0.4]) == [True, True, False, False] or (
        commits("entropy_bound:0", [1.0, 1.0, 0.5, 0.4]) == [True, True, True, False]
    )
    assert commits("entropy_bound:0", [1.0, 1.0, 1.0, 1.0]) == [True] * 4


def test_each_row_draws_from_a_seed_of_its_own() -> None:
    model, prompt = golden_model("llada_gqa"), random_prompts(1)[0]
    options: dict[str, Any] = {**SLOTS, "temperature": 1.0}
    first, second = dllm.generate(model, [prompt, prompt], seed=3, **options).sequences
    assert first != second
    assert dllm.generate(model, [prompt], seed=4, **options).sequences == (second,)


def test_lockstep_lets_prompts_in_where_a_block_begins() -> None:
    progress = Progress(True, True, False, 8, 16, 8, 0, False, 0)
    within = Progress(True, False, False, 8, 16, 8, 0, False, 1)
    for name in ("dual", "prefix"):
        cache = caches.create(name)
        assert (cache.admits(progress), cache.admits(within)) == (True, False)
    assert caches.create("none").admits(within)
    assert not caches.create("dllm_cache").admits(progress)


def test_a_planned_order_is_kept_to() -> None:
    running = dllm.stream(
        golden_model("llada_gqa"), [[5, 7, 9]], scheduler="fixed_quota:steps=8,order=planned",
        seed=1, at_eos="ignore", **SLOTS,
    )  # fmt: skip
    announced: set[int] = set()
    for event in running:
        written = set(event.columns[event.committed].tolist())
        assert not announced or announced == written
        assert len(written) == 2
        assert running.canvas.planned is not None
        announced = set(running.canvas.planned.flatten().tolist()) - {-1}
    assert announced == set()


def test_prefill_ends_with_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(torch.device("cpu"), started=10.0, first_pass=11.0)
    monkeypatch.setattr("dllm.metrics.perf_counter", lambda: 13.0)
    metrics = meter.finish(())
    assert (metrics.prefill_seconds, metrics.decode_seconds, metrics.seconds) == (1, 2, 3)


def test_a_tree_feeds_all_canvases_of_a_row() -> None:
    meter = Meter(torch.device("cpu"))
    meter.passes.append(PassShape("step", 2, 24, 30, 8, 8, num_canvases=3))
    meter.passes.append(PassShape("refresh", 2, 10, 10, 10, 8))
    assert (meter.rows_fed, meter.tokens_fed, meter.fed) == (8, 68, [8, 10])
    assert meter.forwards == {"step": 1, "refresh": 1}


def test_accuracy_is_of_what_was_judged() -> None:
    parts = {"scheduler": schedulers.registry.create("threshold"), "cache": caches.create("none")}
    named: dict[str, Any] = {"settings": {name: part.summary() for name, part in parts.items()}}
    judged = {"a": True, "b": False, "c": None}
    found = [result(name, correct=correct, **named) for name, correct in judged.items()]
    summary = summarise(found)
    assert (summary.accuracy, summary.scored, summary.correct, summary.problems) == (0.5, 2, 1, 3)


def test_nothing_is_revised_from_the_limit_on() -> None:
    scheduler = schedulers.registry.create("token_editing:0.4,editing_threshold=0.3,post_steps=3")
    full, limit = torch.zeros(1, 4, dtype=torch.bool), scheduler.revision_limit(4)
    assert limit == 7
    candidates = candidates_of([[0.9] * 4])
    for block_step, revises in ((limit - 1, True), (limit, False)):
        state = {"post": torch.zeros(1, dtype=torch.int64)}
        tokens = torch.full((1, 4), 2)
        view = view_of(full, block_step, tokens=tokens, state=state)
        edit = scheduler.decide(candidates, view).edit
        assert edit is not None
        layout = view.layout.block_length
        assert scheduler.revision_limit(layout) == limit
        assert bool(edit.any()) == revises


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.125, 0.125]]], dtype=torch.float64).log()
    for top_p, kept in ((0.5, 2), (0.49, 1), (0.75, 3), (0.875, 4)):
        shaped = Sampling(mask_token_id=3, top_p=top_p)._shape(logits)
        assert int(shaped.isfinite().sum()) == kept, top_p


def test_top_k_keeps_ties() -> None:
    logits = torch.tensor([[[3.0, 2.0, 2.0, 1.0]]])
    assert int(Sampling(mask_token_id=3, top_k=2)._shape(logits).isfinite().sum()) == 3


def test_ties_go_to_the_lower_column() -> None:
    score, masked = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[True, True, True]])
    assert best(score, masked).tolist() == [[False, True, False]]
    assert rank(score, masked).tolist() == [[2, 0, 1]]
    assert rank(score, torch.tensor([[True, False, True]])).tolist() == [[1, 2, 0]]


def test_ties_go_to_the_first_variant() -> None:
    both = torch.tensor([[-1, 3]])
    yes = torch.ones(1, 2, dtype=torch.bool)
    variants = Variants(both, both.clamp(min=0), both.double(), yes, yes[:, 0])
    assert variants.pick(torch.tensor([[1.0, 1.0]]), yes[:, 0]).tolist() == [0]
    assert variants.pick(torch.tensor([[1.0, 1.5]]), yes[:, 0]).tolist() == [1]
    only = Variants(both, both.clamp(min=0), both.double(), both < 0, yes[:, 0])
    assert only.pick(torch.tensor([[1.0, 1.5]]), yes[:, 0]).tolist() == [0]


def test_dreams_counts_by_hand() -> None:
    """8 masks, 4 times: the parts are 0.24975, 0.33289, 0.499 and the rest; floors 1, 2, 2, 3."""
    masked, counts = torch.ones(1, 8, dtype=torch.bool), []
    for step in range(4):
        candidates = candidates_of([[0.5 + column / 100 for column in range(8)]])
        view = view_of(masked, step, block_masks=torch.tensor([8]))
        decision = schedulers.registry.create("dream:maskgit_plus,steps=4").decide(candidates, view)
        assert decision.num_steps is not None
        assert decision.num_steps.tolist() == [1]
        counts.append(int(decision.commit.sum()))
        masked = masked & ~decision.commit
    assert counts == [1, 2, 2, 3]


def test_a_quota_is_shared_among_the_steps_that_are_left() -> None:
    for step, expected in ((0, 1), (1, 2), (2, 2), (3, 4)):
        decision = decide("fixed_quota:4", candidates_of([[0.9, 0.8, 0.7, 0.6]]), block_step=step)
        assert int(decision.commit.sum()) == expected


def test_a_factor_is_passed_by_what_equals_it() -> None:
    # 1 - factor / (place + 2): 0.5 for the first with factor 1, and for the third with factor 2.
    even = Candidates(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64))
    masked = torch.ones(1, 3, dtype=torch.bool)
    assert decide("factor:2", even, masked).commit.tolist() == [[True, True, True]]
    assert decide("factor:1", even, masked).commit.tolist() == [[True, False, False]]


def test_blocks_beyond_the_row_change_nothing() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    for name in ("multi_block:0.4", "ete:0.5,mode=commit", "lopa:0.6,branches=2"):
        few, many = (
            dllm.generate(model, prompts, scheduler=f"{name},blocks={blocks}", **SLOTS)
            for blocks in (4, 2**20)
        )
        assert few.sequences == many.sequences
        assert few.metrics.tokens_fed == many.metrics.tokens_fed


def test_a_long_schedule_needs_no_more_memory() -> None:
    out = dllm.generate(
        golden_model("llada_gqa"), [[5, 7]], scheduler=f"dream:entropy,steps={2**20}", **SLOTS
    )
    # The last time of all is where so fine a grid commits, and steps that commit nothing are none.
    assert (out.metrics.num_forwards, out.metrics.raw_tokens) == (2, 16)


def test_a_radius_beyond_the_window_is_the_window() -> None:
    given = {"name": "localleap", "threshold": 0.9, "relaxed_threshold": 0.5, "radius": 2**20}
    assert commits(given, [0.99, 0.4, 0.6, 0.6]) == [True, False, True, True]


def test_sigma_is_a_width_that_a_canvas_may_have() -> None:
    for create in (schedulers.registry.create, caches.create):
        name = "certainty_density" if create == schedulers.registry.create else "d2cache"
        with pytest.raises(ValueError, match=r"sigma=1000000000\.0 must be.*at most 1048576"):
            create({"name": name, "sigma": 1e9})


@pytest.mark.parametrize("cache", ["dual", "prefix", "dkv", "dllm_cache"])
def test_a_row_that_waits_for_the_others_takes_no_part(cache: str) -> None:
    model, prompts = golden_model("llada_mha"), random_prompts(4, seed=3)
    options = {**SLOTS, "scheduler": "threshold:0.2", "cache": cache, "max_new_tokens": 24}
    together = dllm.generate(model, prompts, **options)
    alone = [dllm.generate(model, [prompt], **options).metrics.rows[0] for prompt in prompts]
    assert len({row.forwards for row in alone}) > 1
    assert list(together.metrics.rows) == alone
    running = dllm.stream(model, prompts, **options)
    events = list(running)
    for row, counted in enumerate(running.output.metrics.rows):
        assert counted.forwards == sum(bool(event.committed[row].any()) for event in events)


def test_nothing_is_committed_behind_an_end_token_that_is_skipped_to() -> None:
    ends, options = list(range(30, 60)), {**SLOTS, "scheduler": "fixed_quota:order=random"}
    running = dllm.stream(
        golden_model("llada_gqa"), random_prompts(6), at_eos="skip", eos_token_id=ends, seed=1,
        **options,
    )  # fmt: skip
    before: dict[int, list[int]] = {}
    late = 0
    for event in running:
        for row, columns in enumerate(event.columns.tolist()):
            found = before.get(row, [10**6])
            written = [c for c, new in zip(columns, event.committed[row], strict=True) if new]
            assert all(column < min(found) for column in written)
            late += sum(column > 0 for column in written)
            tokens = event.tokens[row].tolist()
            before[row] = found + [
                column
                for column, token, new in zip(columns, tokens, event.committed[row], strict=True)
                if new and token in ends
            ]
    assert late > 6
    assert any(len(found) > 2 for found in before.values())  # a second one before the first


def test_a_token_that_is_deferred_is_sure_of_nothing() -> None:
    logits = torch.tensor([[[0.0, 5.0, 1.0, 0.5], [0.0, 1.0, 5.0, 0.5]]])
    noise, columns = CounterNoise(torch.tensor([0])), torch.tensor([[4, 5]])
    sampling = Sampling(mask_token_id=0, deferred_token_ids=(1,))
    found = sampling.propose(logits, noise, columns, torch.tensor([0]))
    assert found.token.tolist() == [[1, 2]]
    assert found.confidence[0, 0] == 0
    assert found.confidence[0, 1] > 0.9


def test_the_best_variant_decides_by_its_own_logits() -> None:
    model, checked = golden_model("llada_gqa"), 0

    def observe(record: PassRecord) -> None:
        nonlocal checked
        canvas = record.canvas
        fresh = copied(canvas)
        plan = record.plan
        again = model.forward(fresh.tokens.gather(1, plan.positions), plan, None)
        assert torch.allclose(record.logits, again, atol=1e-9)
        checked += record.num_variants > 1

    settings = Settings(**SLOTS, scheduler="lopa:0.9,branches=3")
    deque(Stream(model, random_prompts(2), settings, observer=observe), maxlen=0)
    assert checked > 3


def test_what_is_cut_off_was_not_committed() -> None:
    ends = list(range(30, 70))
    options = {**SLOTS, "max_new_tokens": 24, "eos_token_id": ends, "at_eos": "ignore"}
    scheduler = {"name": "end_of_text", "rule": "decoded", "inner": "fixed_quota:order=random"}
    out = dllm.generate(
        golden_model("llada_gqa"), random_prompts(4), scheduler=scheduler, seed=2, **options
    )
    assert min(row.raw_tokens for row in out.metrics.rows) < 24, "no row was cut off"
    for row, sequence in zip(out.metrics.rows, out.sequences, strict=True):
        assert row.raw_tokens == len(sequence) - row.prompt_tokens


def test_a_block_opens_when_the_one_before_it_is_decoded_enough() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    ahead = {"name": "multi_block", "threshold": 0.3, "blocks": 3}
    plain = dllm.generate(model, prompts, scheduler="threshold:0.3", **SLOTS)
    full = dllm.generate(model, prompts, scheduler={**ahead, "add_threshold": 1.0}, **SLOTS)
    assert full.sequences == plain.sequences
    assert full.metrics.rows == plain.metrics.rows
    early = dllm.generate(model, prompts, scheduler={**ahead, "add_threshold": 0.0}, **SLOTS)
    assert early.metrics.num_forwards < plain.metrics.num_forwards


@torch.inference_mode()
def test_guidance_leads_away_from_what_is_said_without_the_prompt() -> None:
    model = golden_model("llada_gqa")
    mask, columns = model.spec.mask_token_id, torch.arange(4)[None]
    tokens, given = torch.tensor([[5, 7, mask, mask]]), torch.tensor([[True, True, False, False]])
    plan = StepPlan("refresh", columns, columns, 4)
    told = model.forward(tokens, plan, None)
    blind = model.forward(tokens.masked_fill(given, mask), plan, None)
    found = GuidedModel(model, 0.5, given).forward(tokens, plan, None)
    assert torch.allclose(found, blind + 1.5 * (told - blind), atol=1e-9)
    assert not torch.allclose(told, blind)


@pytest.mark.few(3)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cache", ["dual", "prefix", "dkv:3", "sparse:0.5", "window_diffusion:4"])
def test_what_is_cut_off_does_not_depend_on_rows_beside_it(cache: str, seed: int) -> None:
    """A finished row stays as it is, and a refresh that only one row needs spares no other."""
    model, ends = golden_model("llada_gqa"), [6, 9, 13, 29, 31, 47, 72, 113, 124]
    prompts = [[token % 90 for token in row] for row in random_prompts(3, seed=seed, high=20)]
    options: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "cache": cache}
    options |= {"scheduler": "threshold:0.2", "at_eos": "truncate", "eos_token_id": ends}
    together = dllm.generate(model, prompts, **options)
    for row, prompt in enumerate(prompts):
        alone = dllm.generate(model, [prompt], **options)
        assert alone.sequences[0] == together.sequences[row]
        assert alone.metrics.rows[0] == together.metrics.rows[row]
