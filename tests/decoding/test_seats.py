"""Lists of prompts: how many rows are decoded at a time, in which order, with the same answers."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

import dllm
from dllm.cache import Cache
from dllm.cache import registry as caches
from dllm.decoding import memory_limits
from dllm.decoding.memory_limits import Demand
from dllm.decoding.seats import FEW, num_seats
from dllm.generate import Stream
from dllm.metrics import Meter
from dllm.settings import resolve
from tests.support.lengths import CACHES, LENGTHS, shuffled
from tests.support.models import golden_model

NEW, BLOCK = 8, 4


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return golden_model("llada_gqa", "float32")


def uneven(count: int) -> list[list[int]]:
    """Returns prompts of 1 to 40 tokens, long ones between short ones."""
    return [[5 + row % 3] * (1 + 13 * row % 40) for row in range(count)]


def decoded(model: Any, count: int, **more: Any) -> dllm.GenerationOutput:
    common = {"max_new_tokens": NEW, "block_length": BLOCK, "scheduler": "threshold:0.3"}
    return dllm.generate(model, uneven(count), **{**common, "seed": 3, **more})


def at_once(model: Any, count: int, **more: Any) -> dllm.GenerationOutput:
    """Returns what all rows give in one canvas, as few prompts are decoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dllm.decoding.seats.FEW", count)
        return decoded(model, count, batch_size=count, **more)


def fixed(cache: Cache, model: Any, rows: int, columns: int = 48, variants: int = 1) -> int:
    """Returns how many rows of a canvas are decoded at a time."""
    prompts = [[5] * (columns - NEW)] * rows
    running = dllm.stream(model, prompts, max_new_tokens=NEW, block_length=BLOCK, batch_size=rows)
    canvas = running.canvas if running.batch is None else running.batch.all_rows
    layout = canvas.layout
    stored = cache.uses_store
    return num_seats(cache, Demand(model, stored, variants, variants, layout, Meter(model.device)))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "dkv", "d2cache"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_list_gives_what_its_rows_would_give_together(
    model: dllm.HostedModel, cache: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = 400 if cache == "none" else 6 * BLOCK
    monkeypatch.setattr("dllm.decoding.seats._ENOUGH", {"cpu": columns})
    options = {"cache": cache, "temperature": temperature}
    together = at_once(model, 30, **options)
    chosen = decoded(model, 30, **options)
    assert chosen.sequences == together.sequences
    assert chosen.metrics.rows == together.metrics.rows
    assert torch.equal(chosen.trace.commit_step, together.trace.commit_step)
    assert chosen.metrics.num_forwards > together.metrics.num_forwards  # others did wait
    assert chosen.metrics.tokens_fed < together.metrics.tokens_fed
    bounded = decoded(model, 30, batch_size=5, **options)
    assert bounded.sequences == together.sequences
    assert bounded.metrics.rows == together.metrics.rows
    assert torch.equal(bounded.trace.commit_step, together.trace.commit_step)


def test_few_prompts_are_one_batch(model: dllm.HostedModel) -> None:
    assert decoded(model, FEW).metrics.rows_fed % FEW == 0
    assert fixed(caches.create("none"), model, FEW, columns=200) == FEW


def test_seats_follow_the_columns_of_a_step(model: dllm.HostedModel) -> None:
    none = caches.create("none")
    assert fixed(none, model, 100) == 384 // 48
    assert fixed(none, model, 100, variants=3) == 384 // 48 // 3
    assert fixed(none, model, 40, columns=200) == 1
    assert fixed(caches.create("dual"), model, 20) >= 20  # its steps feed a block alone


@pytest.mark.parametrize("rows", [8, 100])
def test_seats_leave_memory_free(
    model: dllm.HostedModel, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_limits, "available", lambda device: 5)
    assert fixed(caches.create("dual"), model, rows) == 1  # it is tried, and the error says more


def test_short_rows_go_first_and_answers_keep_their_order(model: dllm.HostedModel) -> None:
    prompts = uneven(60)
    running = dllm.stream(model, prompts, max_new_tokens=NEW, block_length=BLOCK)
    ended = [prompt for event in running for prompt in event.finished]
    assert sorted(ended) == list(range(60))
    lengths = [len(prompts[prompt]) for prompt in ended]
    assert sum(lengths[:20]) < sum(lengths[20:40]) < sum(lengths[40:])
    rows = zip(running.output.sequences, prompts, strict=True)
    assert all(row[: len(prompt)] == tuple(prompt) for row, prompt in rows)


def test_padding_of_uneven_rows_is_counted_and_smaller(model: dllm.HostedModel) -> None:
    together, chosen = at_once(model, 90), decoded(model, 90)
    assert chosen.metrics.padding is not None
    assert together.metrics.padding is not None
    assert chosen.metrics.padding < 0.1 < 0.4 < together.metrics.padding
    assert chosen.metrics.to_dict()["padding"] == chosen.metrics.padding


@pytest.mark.parametrize("size", [None, 3, 16, 200])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LENGTHS)
def test_a_tenth_of_what_is_fed_is_padding_at_most(
    model: dllm.HostedModel, cache: str, name: str, size: int | None
) -> None:
    prompts = [[5 + number % 50] * length for number, length in enumerate(shuffled(name))]
    options: dict[str, Any] = {"max_new_tokens": 12, "block_length": BLOCK, "cache": cache}
    options |= {"scheduler": "threshold:0.3", "eos_token_id": [6, 9, 13, 29, 72, 113]}
    options |= {"batch_size": size}
    found = dllm.generate(model, prompts, seed=list(range(len(prompts))), **options)
    assert found.metrics.padding is not None
    assert 0 <= found.metrics.padding < 0.1
    for row in random.Random(2).sample(range(len(prompts)), 3):
        alone = dllm.generate(model, [prompts[row]], seed=[row], **options)
        assert found.sequences[row] == alone.sequences[0]
        assert found.metrics.rows[row] == alone.metrics.rows[0]


CUTTING: list[dict[str, Any]] = [
    {"cache": "dual", "scheduler": "threshold:0.3", "temperature": 0.8},
    {"cache": "sparse", "scheduler": "lopa:0.6,branches=3"},
    {"cache": "d2cache", "scheduler": "remdm"},
    {"cache": "prefix", "scheduler": "fixed_quota", "verifier": "ssd"},
    {"cache": "dllm_cache", "scheduler": "wino"},
    {"cache": "dual", "scheduler": "threshold:0.3", "guidance_scale": 0.5},
]


@pytest.mark.parametrize("options", CUTTING, ids=lambda one: f"{one['scheduler']}-{one['cache']}")
def test_rows_that_move_to_other_seats_are_what_they_were(
    model: dllm.HostedModel, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllm.decoding.seats._ENOUGH", {"cpu": 120})
    ends = {"eos_token_id": [6, 9, 13, 29, 72, 113], "max_new_tokens": 12}
    together = at_once(model, 40, **ends, **options)
    for size in (None, 6):
        chosen = decoded(model, 40, batch_size=size, **ends, **options)
        assert chosen.sequences == together.sequences
        assert chosen.metrics.rows == together.metrics.rows
        if "guidance_scale" not in options:
            assert chosen.metrics.padding is not None
            assert chosen.metrics.padding < 0.1


def test_seats_come_and_go_with_the_rows(model: dllm.HostedModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": NEW, "block_length": BLOCK}
    options |= {"scheduler": "threshold:0.3", "cache": "prefix", "seed": 3}
    running = dllm.stream(model, uneven(90), **options)
    seats = []
    for event in running:
        assert len(event.prompts) == len(event.columns) == len(set(event.prompts))
        assert set(event.finished) <= set(event.prompts)
        seats.append(len(event.prompts))
    pairs = list(itertools.pairwise(seats))
    assert any(after < before for before, after in pairs)
    assert any(after > before for before, after in pairs)


ALIKE: dict[str, Any] = {"scheduler": "threshold:0.3", "max_new_tokens": 16, "seed": 3}
ALIKE |= {"block_length": BLOCK, "eos_token_id": [6, 9, 13, 29, 72, 113]}


def joined(seats: list[tuple[int, ...]]) -> list[bool]:
    """Returns after which steps a prompt entered while others went on."""
    steps = [(set(before), set(after)) for before, after in itertools.pairwise(seats)]
    return [bool(after - before and before & after) for before, after in steps]


@pytest.mark.parametrize("cache", ["none", "dual", "dkv"])
def test_rows_enter_beside_others_up_to_the_bound(model: dllm.HostedModel, cache: str) -> None:
    """With lockstep seats go in the middle of a block, and rows enter where the next one begins."""
    prompts = [[5 + row, 6 + row, 7 + row] for row in range(40)]
    running = dllm.stream(model, prompts, cache=cache, batch_size=6, **ALIKE)
    seats, seen = [], set[int]()
    for event in running:
        seats.append(event.prompts)
        seen |= set(event.prompts)
        if event.kind == "refresh" and cache != "dkv":  # it feeds all columns in any pass
            # Seats that went are filled as soon as rows may enter.
            assert len(event.prompts) == 6 or len(seen) == 40
    assert max(map(len, seats)) == 6
    beside = joined(seats)
    assert sum(beside) > 3
    if cache != "none":
        pairs = itertools.pairwise(seats)
        grown = [len(after) > len(before) for before, after in pairs]
        assert any(more and kept for more, kept in zip(grown, beside, strict=True))


@pytest.mark.parametrize(("cache", "enters"), [("dual", True), ("none", True), ("prefix", False)])
def test_a_list_that_nobody_watches(model: dllm.HostedModel, cache: str, enters: bool) -> None:
    prompts = [[5 + row] * (3 + row % 2 * 20) for row in range(15)]
    settings = resolve(model.defaults, None, {**ALIKE, "cache": cache})
    running = Stream(model, prompts, settings, bound=4)
    seats = [event.prompts for event in running]
    assert max(map(len, seats)) == 4
    assert any(joined(seats)) == enters
    assert running.output.sequences == dllm.generate(model, prompts, settings).sequences
    assert running.output.metrics.padding is not None
    assert running.output.metrics.padding < 0.1


def test_a_row_alone_has_no_padding(model: dllm.HostedModel) -> None:
    assert decoded(model, 1).metrics.padding == 0.0
    one_after_the_other = decoded(model, 7, batch_size=1).metrics
    assert one_after_the_other.padding == 0.0


# How far it is.


def test_progress_is_told_of_finished_rows(model: dllm.HostedModel) -> None:
    told: list[tuple[int, int]] = []
    decoded(model, 40, progress=lambda done, rows: told.append((done, rows)))
    assert told[0] == (0, 40)
    assert told[-1] == (40, 40)
    done = [one for one, _ in told]
    assert done == sorted(set(done))
    assert {rows for _, rows in told} == {40}


def test_what_progress_raises_ends_the_generation(model: dllm.HostedModel) -> None:
    def refuse(done: int, rows: int) -> None:
        raise LookupError(f"{done} of {rows}")

    with pytest.raises(LookupError, match="0 of 3"):
        decoded(model, 3, progress=refuse)
