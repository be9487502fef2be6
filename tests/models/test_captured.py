"""Captured passes: what is kept, for how long, over which memory; with a recorder for a CPU."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.decoding.passes import can_narrow
from dllm.generate import Stream
from dllm.models.speed.captured import AT_ONCE, Captured, CaptureError, Work
from dllm.schedulers import Needs
from dllm.settings import Settings
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore, StoreShape
from tests.support.marks import crossed
from tests.support.speed import PROMPTS, cases, decode, decodings, model_of, usual

DUAL = {"cache": "dual", "scheduler": "fixed_quota"}


class Replayer:
    """Stands in for CUDA graphs: a replay does the work again, on the very same tensors."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.recorded, self.replayed = 0, 0

    def record(self, work: Work) -> Work:
        work()
        self.recorded += 1
        if self.recorded == self.fails_at:
            raise CaptureError("operation not permitted when stream is capturing")

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def captured(
    model: dllm.HostedModel, most: int = 64, fails_at: int | None = None, at_once: int = AT_ONCE
) -> tuple[dllm.HostedModel, Captured, Replayer]:
    recorder = Replayer(fails_at)
    runner = Captured(model.network, recorder, most, at_once)
    return replace(model, runner=runner), runner, recorder


@pytest.mark.few(4)
@pytest.mark.parametrize("place", cases())
def test_tokens_are_those_of_the_passes_themselves(place: int) -> None:
    name, settings = decodings()[place]
    model, runner, recorder = captured(model_of(name))
    for _ in range(2):  # the second time over the memory of the first
        assert decode(model, settings) == usual(place)
    assert 0 < runner.num_captured == recorder.recorded
    assert recorder.replayed > recorder.recorded


def test_a_second_generation_captures_nothing_that_is_there() -> None:
    model, _, recorder = captured(model_of("llada_gqa"))
    settings = {**DUAL, "at_eos": "ignore"}
    decode(model, settings)
    decode(model, settings)  # what was met once before is captured now
    before = recorder.recorded
    decode(model, settings)
    assert recorder.recorded == before


def test_a_long_pass_is_captured_when_it_is_met_again() -> None:
    model, runner, recorder = captured(model_of("llada_mha"), at_once=7)
    plan = whole(7)
    for count, replayed in ((0, 0), (1, 0), (1, 1)):
        model.forward(torch.full((1, 7), 3), plan, None)
        assert (runner.num_captured, recorder.replayed) == (count, replayed)
    model.forward(torch.full((1, 8), 3), whole(8), None)
    assert runner.num_captured == 1
    for width, count in ((8, 1), (6, 2)):  # a short step is captured at once
        step = replace(whole(width), kind="step", logit_rows=torch.tensor([[1]]))
        model.forward(torch.full((1, width), 3), step, None)
        assert runner.num_captured == count


def test_lengths_of_prompts_make_no_shapes_of_their_own() -> None:
    """Of block steps over a store all are replayed once the first of a kind was captured."""
    plain, (model, runner, recorder) = model_of("llada_gqa"), captured(model_of("llada_gqa"))
    options: Any = {"max_new_tokens": 16, "block_length": 8, "at_eos": "ignore", **DUAL}
    source = torch.Generator().manual_seed(1)
    for length in (17, 33, 20, 41, 5, 30, 44, 12):
        prompt = torch.randint(0, 90, (length,), generator=source).tolist()
        before = (recorder.recorded, recorder.replayed)
        ours = dllm.generate(model, [prompt], **options)
        assert ours.sequences == dllm.generate(plain, [prompt], **options).sequences
        # Of its two refreshes, whose widths are its own, the second may be captured.
        handled = sum((recorder.recorded, recorder.replayed)) - sum(before)
        assert handled >= ours.metrics.num_forwards - 2
    steps = [key for key in runner._captured if key.inputs[0] == (1, 8)]
    assert len(steps) <= 2  # stores of 64 columns, and of 128
    assert all(key.num_keys % 64 == 0 for key in steps)


@pytest.mark.parametrize("mask", [None, "keys", "queries"])
@pytest.mark.parametrize("num_stored", [4, 2])
def test_more_keys_change_no_logits(mask: str | None, num_stored: int) -> None:
    """Also where keys of this pass alone follow those of the store."""
    model, columns = model_of("llada_gqa"), torch.arange(3, 7).expand(2, 4)
    seen = 9 + 4 - num_stored
    hidden = torch.arange(seen) < torch.tensor([[[seen]], [[seen - 3]]])
    attend = {"keys": hidden, "queries": hidden.expand(2, 4, seen)}.get(mask or "")
    plan = StepPlan("step", columns, columns - 3, 9, attend, columns[:, :num_stored])
    found = []
    for one in (plan, plan.with_keys(13)):
        store = model.new_store(2, 16)
        for held in (*store.keys, *store.values):
            held.normal_(generator=torch.Generator().manual_seed(2))
        found.append(model.forward(torch.full((2, 4), 5), one, store))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    assert plan.with_keys(13).shape.num_seen == seen + 4


def test_a_masked_pass_is_another_than_an_open_one() -> None:
    model, runner, _ = captured(model_of("llada_mha"))
    tokens, hidden = torch.arange(7)[None], torch.arange(7)[None, None] < 5
    for attend in (None, hidden, hidden.expand(1, 7, 7)):
        plan = replace(whole(7), attention_mask=attend)
        expected = model_of("llada_mha").forward(tokens, plan, None)
        for _ in range(3):
            assert torch.equal(model.forward(tokens, plan, None), expected)
    assert runner.num_captured == 3


def test_logits_outlive_the_next_pass() -> None:
    model, _, _ = captured(model_of("llada_mha"))
    given = [torch.full((1, 7), token) for token in (3, 4, 5, 6)]
    all_logits = [model.forward(tokens, whole(7), None) for tokens in given]
    for tokens, logits in zip(given, all_logits, strict=True):
        assert torch.equal(logits, model_of("llada_mha").forward(tokens, whole(7), None))


def test_those_used_last_are_kept() -> None:
    model, runner, recorder = captured(model_of("llada_mha"), most=2)
    for width in (5, 5, 6, 6, 5, 7, 7):  # 5 is used again after 6, so 6 makes room for 7
        model.forward(torch.full((1, width), 3), whole(width), None)
    assert runner.num_captured == 2
    replayed = recorder.replayed
    for width, more in ((5, 1), (7, 2), (6, 2)):
        model.forward(torch.full((1, width), 3), whole(width), None)
        assert recorder.replayed - replayed == more


def test_memory_of_shapes_met_once_is_bounded() -> None:
    model, runner, _ = captured(model_of("llada_mha"), most=1)
    for width in range(2, 12):
        model.forward(torch.full((1, width), 3), whole(width), None)
    assert len(runner._met) == 4


def test_most_must_be_positive() -> None:
    with pytest.raises(ValueError, match="most=0 captured passes must be at least 1"):
        Captured(model_of("llada_mha").network, Replayer(), most=0)


def test_a_failed_capture_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, runner, recorder = captured(model_of("llada_gqa"), fails_at=2)
    expected = decode(model_of("llada_gqa"), DUAL)
    with caplog.at_level(logging.WARNING, "dllm"):
        assert decode(model, DUAL) == expected
        assert decode(model, DUAL) == expected
    (record,) = caplog.records
    assert "run one by one from now on: operation not permitted" in record.getMessage()
    assert (runner.num_captured, recorder.recorded) == (0, 2)


def test_an_error_of_the_pass_itself_is_not_hidden() -> None:
    model, runner, _ = captured(model_of("llada_mha"))
    plan = replace(whole(7), logit_rows=torch.tensor([[9]]))
    for _ in range(2):
        with pytest.raises((RuntimeError, IndexError)):
            model.forward(torch.full((1, 7), 3), plan, None)
    assert runner.failed is None


@pytest.mark.few(2)
@pytest.mark.parametrize("cache", ["d2cache:4", "dllm_cache", "sparse:0.5", "dkv:3"])
def test_caches_that_do_more_than_keys_and_values(cache: str) -> None:
    settings = {"cache": cache, "scheduler": "fixed_quota"}
    model, _, _ = captured(model_of("llada_gqa"))
    for _ in range(2):
        assert decode(model, settings) == decode(model_of("llada_gqa"), settings)


def test_observed_passes_run_as_they_are() -> None:
    model, runner, _ = captured(model_of("llada_gqa"))
    seen: list[int] = []

    def note(one: Any) -> None:
        seen.append(int(one.store.age(1).max()))

    settings = Settings(max_new_tokens=16, block_length=8, cache="dual", scheduler="fixed_quota")
    assert len(list(Stream(model, PROMPTS, settings, observer=note))) == len(seen) > 2
    assert runner.num_captured == 0


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("cache", "scheduler"), crossed(("none", "dual"), ("wino", "ete:0.9", "lopa", "klass"))
)
def test_methods_with_passes_of_their_own(scheduler: str, cache: str) -> None:
    settings = {"scheduler": scheduler, "cache": cache}
    model, _, _ = captured(model_of("llada_gqa"))
    for _ in range(2):
        assert decode(model, settings) == decode(model_of("llada_gqa"), settings)


def test_guided_passes() -> None:
    model, runner, _ = captured(model_of("llada_gqa"))
    for _ in range(2):
        options = {**DUAL, "guidance_scale": 1.5}
        assert decode(model, options) == decode(model_of("llada_gqa"), options)
    assert runner.num_captured > 0


def test_generations_at_the_same_time_have_memory_of_their_own() -> None:
    model, _, _ = captured(model_of("llada_gqa"))
    options: dict[str, Any] = {**DUAL, "max_new_tokens": 16, "block_length": 8}
    alone = [dllm.generate(model_of("llada_gqa"), [p], **options).sequences for p in PROMPTS]
    streams = [dllm.stream(model, [prompt], **options) for prompt in PROMPTS]
    running = [iter(one) for one in streams]
    while running:
        running = [one for one in running if next(one, None) is not None]
    assert [one.output.sequences for one in streams] == alone


def test_a_conversation_goes_on_over_its_stored_beginning() -> None:
    plain = model_of("sdar")
    model, _, _ = captured(plain)
    memory, own = dllm.PromptMemory(), dllm.PromptMemory()
    options: dict[str, Any] = {"cache": "block_causal", "max_new_tokens": 16, "block_length": 8}
    row = PROMPTS[0] * 4
    for _ in range(3):
        ours = dllm.generate(model, [row], memory=memory, **options).sequences
        assert ours == dllm.generate(plain, [row], memory=own, **options).sequences
        row = [*ours[0], 5, 6, 7]
    assert memory.reused == own.reused
    assert memory.reused[0] > 0


SHAPE = StoreShape(2, 20, 2, 4)
CPU = torch.device("cpu")


def new_store(runner: Captured, shape: StoreShape = SHAPE) -> KVStore:
    return runner.new_store(shape, torch.float32, [CPU, CPU])


def test_a_store_that_is_over_leaves_its_memory_empty() -> None:
    _, runner, _ = captured(model_of("llada_gqa"))
    store = new_store(runner)
    place = [held.data_ptr() for held in (*store.keys, *store.values)]
    with torch.inference_mode():
        for held in (*store.keys, *store.values):
            held.fill_(torch.nan)
    store.keep_stamps()
    del store
    gc.collect()
    for shape in (SHAPE, replace(SHAPE, num_columns=11), replace(SHAPE, num_rows=1)):
        again = new_store(runner, shape)
        assert [held.data_ptr() for held in (*again.keys, *again.values)] == place
        assert again.shape == replace(shape, num_columns=64)  # rounded up
        assert all(len(held) == again.scratch + 1 for held in again.keys)
        assert not any(held.any() for held in (*again.keys, *again.values))
        assert again.stamp is None
        del again


def test_two_stores_share_nothing() -> None:
    _, runner, _ = captured(model_of("llada_gqa"))
    one, other = new_store(runner), new_store(runner)
    assert one.keys[0].data_ptr() != other.keys[0].data_ptr()
    assert runner.stores.number_of(one) != runner.stores.number_of(other)


def test_memory_that_is_too_small_takes_what_was_captured_with_it() -> None:
    model, runner, recorder = captured(model_of("llada_gqa"))
    options = {**DUAL, "at_eos": "ignore"}
    decode(model, options)
    assert runner.num_captured > 0
    store = model.new_store(3, 4000)
    assert (runner.num_captured, len(runner._met)) == (0, 0)
    del store
    before = recorder.recorded
    assert decode(model, options) == decode(model_of("llada_gqa"), options)
    assert recorder.recorded > before


def test_another_dtype_is_other_memory() -> None:
    _, runner, _ = captured(model_of("llada_gqa"))
    first = runner.stores.number_of(new_store(runner))
    wide = runner.new_store(SHAPE, torch.float64, [CPU, CPU])
    assert runner.stores.number_of(wide) != first
    assert wide.keys[0].dtype == torch.float64


@pytest.mark.parametrize("others", [(10, 8), (12, 10), (20, 12)])
def test_passes_that_differ_in_keys_or_in_the_extent_of_the_store(others: tuple[int, int]) -> None:
    model, _, _ = captured(model_of("llada_gqa"))
    plain, columns = model_of("llada_gqa"), torch.arange(6).expand(2, 6)
    for width, num_keys in ((12, 8), others, (12, 8), others):
        stores = [one.new_store(2, width) for one in (plain, model)]
        plan = StepPlan("step", columns, columns, num_keys, stored=columns)
        for token in (3, 4, 5):
            tokens = torch.full((2, 6), token)
            expected, found = (
                one.forward(tokens, plan, store)
                for one, store in zip((plain, model), stores, strict=True)
            )
            # Over whole groups of keys, those in excess hidden, sums are taken in another order.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
            for ours, theirs in zip(stores[1].keys, stores[0].keys, strict=True):
                own = stores[1].first_columns(ours, 2, width)
                usual_ones = stores[0].first_columns(theirs, 2, width)
                torch.testing.assert_close(own, usual_ones, rtol=0, atol=1e-4)
        del stores


def test_a_store_from_elsewhere_is_not_captured() -> None:
    model, runner, _ = captured(model_of("llada_gqa"))
    store = model_of("llada_gqa").new_store(1, 12)
    columns = torch.arange(8)[None]
    plan = StepPlan("step", columns, columns, 8, stored=columns)
    for _ in range(3):
        model.forward(torch.full((1, 8), 3), plan, store)
    assert runner.num_captured == 0


def whole(width: int) -> StepPlan:
    columns: Tensor = torch.arange(width)[None]
    return StepPlan("refresh", columns, columns, width)


@pytest.mark.parametrize(
    ("device", "num_rows", "narrows"),
    [("cpu", 1, True), ("cuda", 1, False), ("cuda", 4, False), ("cuda", 5, True)],
)
def test_where_the_head_is_narrowed(device: str, num_rows: int, narrows: bool) -> None:
    """On a GPU each number of logits' rows would be a shape, and few of them save no time."""
    layout: Any = SimpleNamespace(num_rows=num_rows, window_length=32)
    assert can_narrow(Needs(), layout, torch.device(device)) == narrows
    assert not can_narrow(Needs(whole_block=True), layout, torch.device(device))
