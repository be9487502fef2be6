"""Methods that take back what they committed: what all of them keep to, RCR and ReMDM by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dllm
from dllm import schedulers
from dllm.cli import generate as command
from dllm.schedulers import Scheduler
from dllm.state import writing
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.window import StepEvent, Window
from tests.support.laws import grows
from tests.support.marks import crossed
from tests.support.models import golden_model, random_prompts
from tests.support.views import MASK, ROWS, SETUP, WIDTH, one_block, view_of

BLOCK, SLOTS = 12, 24
FIXED = {0: 5, 9: 6, 23: 7}
# Settings with which each method revises on the golden models.
SETTINGS: list[str] = [
    "wino:0.3,threshold_back=0.7",
    "hierarchical:0.5,low_threshold=0.2,remask_threshold=0.4",
    "token_editing:0.4,editing_threshold=0.3,post_steps=3",
    "token_editing:0.4,editing_threshold=0.0,steps=4",
    "insert_delete:0.4,editing_threshold=0.3,post_steps=3,delete_token_id=9,split_token_id=6",
    "rcr",
    "rcr:steps=18,schedule=cosine",
    "remdm:remask=2,begin=0.5,loops=4",
    "remdm:remask=99,begin=0.7,loops=3,per_step=3",
    "saber:4",
]
CACHES = ["none", "prefix", "dual", "dkv", {"name": "none", "beyond_block": False}]


def name_of(scheduler: str) -> str:
    return scheduler.partition(":")[0]


def run(scheduler: Any, name: str = "llada_gqa", **given: Any) -> dllm.GenerationOutput:
    options = {"max_new_tokens": SLOTS, "block_length": BLOCK, "at_eos": "ignore", **given}
    return dllm.generate(golden_model(name), random_prompts(4), scheduler=scheduler, **options)


def test_every_method_that_revises_is_here() -> None:
    found = {n for n in schedulers.registry.names() if schedulers.registry.create(n).can_revise}
    # What is held here goes by columns, blocks and fixed slots, of which a gap that grows has none.
    moving = {name for name in found if grows(name)}
    assert found - moving <= set(map(name_of, SETTINGS))
    assert all(schedulers.registry.create(given).can_revise for given in SETTINGS)


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Window]]:
    """The whole canvas (B, C) before and after each write, with its window."""
    seen: list[tuple[Tensor, Tensor, Window]] = []
    original = writing.apply

    def apply(canvas: Canvas, window: Window, *decided: Any) -> StepEvent:
        before = canvas.tokens.clone()
        event = original(canvas, window, *decided)
        seen.append((before, canvas.tokens.clone(), window))
        return event

    monkeypatch.setattr("dllm.decoding.passes.apply", apply)
    return seen


RESTS: list[dict[str, Any]] = [{}, {"at_eos": "stop"}, {"blocks_from": "zero"}]


@pytest.mark.few(4)
@pytest.mark.parametrize(("scheduler", "cache", "rest"), crossed(SETTINGS, CACHES, RESTS))
def test_revisions_stay_in_the_block_and_end(
    scheduler: str, cache: Any, rest: Any, applied: list[tuple[Tensor, Tensor, Window]]
) -> None:
    out = run(scheduler, cache=cache, fixed=FIXED, eos_token_id=[6, 13, 29, 113], **rest)
    mask, num_revised = golden_model("llada_gqa").spec.mask_token_id, 0
    for before, after, window in applied:
        revised = (before != after) & (before != mask)
        allowed = torch.zeros_like(revised)
        allowed.scatter_(1, window.columns, window.block & window.active[:, None])
        assert not (revised & ~allowed).any()
        num_revised += int(revised.sum())
    assert num_revised > 0 or rest == {"at_eos": "stop"}, "nothing was revised"
    num_blocks = SLOTS // BLOCK + ("blocks_from" in rest)
    limit = schedulers.registry.create(scheduler).revision_limit(BLOCK)
    for prompt, sequence, row in zip(
        random_prompts(4), out.sequences, out.metrics.rows, strict=True
    ):
        answer = sequence[len(prompt) :]
        assert list(sequence[: len(prompt)]) == prompt
        assert {slot: answer[slot] for slot in FIXED} == FIXED
        assert mask not in sequence
        assert row.forwards <= num_blocks * limit


@pytest.mark.few(4)
@pytest.mark.parametrize(("scheduler", "cache"), crossed(SETTINGS, CACHES))
def test_the_trace_tells_what_was_revised(scheduler: str, cache: Any) -> None:
    out = run(scheduler, cache=cache)
    record = json.loads(json.dumps(out.trace.to_dict()))
    assert json.loads(json.dumps(out.metrics.to_dict()))["raw_tokens"] == 4 * SLOTS
    for row, prompt in enumerate(random_prompts(4)):
        canvas = prompt + [126] * SLOTS
        last = [-1] * len(canvas)
        for step, column, token in record["changes"][row]:
            assert canvas[column] != token, "a write that changes nothing"
            canvas[column] = token
            last[column] = step if token != 126 else -1
        assert tuple(canvas) == out.sequences[row]
        assert record["commit_step"][row][: len(canvas)] == last
        metrics = out.metrics.rows[row]
        assert metrics.raw_tokens == SLOTS
        assert out.trace.num_steps(row) <= metrics.forwards
        *_, final = out.trace.replay(row)
        assert final == out.trace.tokens[row].tolist()


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("scheduler", "at_eos"), crossed(SETTINGS, ("stop", "skip", "block", "truncate"))
)
def test_a_replay_ends_where_the_text_did(scheduler: str, at_eos: str) -> None:
    out = run(scheduler, at_eos=at_eos, eos_token_id=[6, 13, 29, 113])
    for row in range(4):
        *_, final = out.trace.replay(row)
        assert final == out.trace.tokens[row].tolist()
        assert 126 not in final
        metrics = out.metrics.rows[row]
        assert metrics.raw_tokens == int((out.trace.commit_step[row] >= 0).sum())
        assert metrics.valid_tokens <= metrics.raw_tokens


def drawn(seed: int) -> Callable[[], Candidates]:
    """Candidates (B, W) that have nothing to do with what stands on the canvas."""
    source = torch.Generator().manual_seed(seed)

    def draw() -> Candidates:
        logits = torch.randn(ROWS, WIDTH, MASK + 1, generator=source) * 3
        logits[..., MASK] = -30
        return Candidates(logits, logits.argmax(-1))

    return draw


@pytest.mark.few(4)
@pytest.mark.parametrize("scheduler", SETTINGS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**20), fixed=st.sets(st.integers(0, WIDTH - 1)))
def test_a_block_ends_within_the_limit_whatever_the_model_says(
    scheduler: str, seed: int, fixed: set[int]
) -> None:
    method = schedulers.registry.create(scheduler)
    is_fixed = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
    for place in fixed:
        is_fixed[place % ROWS, place] = True
    tokens = torch.zeros(ROWS, WIDTH)
    for decision, tokens, step in one_block(method, drawn(seed), is_fixed):
        assert int(step.max()) <= method.revision_limit(WIDTH)
        assert not (tokens[is_fixed] != 0).any()
        for revised in (decision.remask, decision.edit):
            assert revised is None or not (decision.commit & revised).any()
    assert not (tokens == MASK).any()


# Running confidence


def likely(chances: Any) -> Candidates:
    """Candidates (1, W) that give token 0 these probabilities."""
    chance = torch.tensor([chances], dtype=torch.float64)[..., None]
    rest = ((1 - chance) / MASK).expand(*chance.shape[:-1], MASK)
    return Candidates(torch.cat([chance, rest], -1).log(), torch.zeros(1, len(chances)).long())


def follow(scheduler: Scheduler, *chances: list[float]) -> list[str]:
    """Returns a block after each step, `#` a token and `.` a mask."""
    width, seen = len(chances[0]), []
    tokens = torch.full((1, width), MASK)
    state = scheduler.start(replace(SETUP, num_rows=1, width=width, dtype=torch.float64))
    for step, chance in enumerate(chances):
        view = view_of(tokens == MASK, tokens=tokens, state=state, block_step=step)
        decision = scheduler.decide(likely(chance), view)
        assert decision.state is not None
        state = decision.state
        tokens = tokens.masked_fill(decision.commit, 0)
        if decision.remask is not None:
            tokens = tokens.masked_fill(decision.remask, MASK)
        seen.append("".join("." if token == MASK else "#" for token in tokens[0].tolist()))
    return seen


def rcr(**options: Any) -> Scheduler:
    return schedulers.registry.create({"name": "rcr", **options})


def test_a_token_falls_behind_what_masks_promise() -> None:
    first, second = [0.5, 0.4, 0.3, 0.2], [0.9, 0.6, 0.55, 0.2]
    # At first 0.5 is the best. Then two others promise more than that; it counts as it was, not
    # as the 0.9 that it is read at now, for a token confirms itself.
    assert follow(rcr(), first, second) == ["#...", ".##."]
    assert follow(rcr(), first, second, [0.58, 0.9, 0.9, 0.1]) == ["#...", ".##.", "###."]


def test_schedules_by_hand() -> None:
    rising = [0.9 - column / 100 for column in range(8)]
    counts = [row.count("#") for row in follow(rcr(steps=4), *[rising] * 4)]
    assert counts == [2, 4, 6, 8]
    # 8 cos(pi t / 8) = 7.4, 5.7, 3.06, 0 masks are left.
    cosine = follow(rcr(steps=4, schedule="cosine"), *[rising] * 4)
    assert [row.count("#") for row in cosine] == [1, 3, 5, 8]


@given(width=st.integers(1, 40), steps=st.integers(1, 50))
@settings(deadline=None, max_examples=40)
def test_the_schedule_is_kept_exactly(width: int, steps: int) -> None:
    rising = [0.9 - column / 100 for column in range(width)]
    counts = [row.count("#") for row in follow(rcr(steps=steps), *[rising] * min(steps, width))]
    for step, count in enumerate(counts, start=1):
        assert count == max(width - width * (steps - step) // steps, step)
    assert counts[-1] == width


@given(seed=st.integers(0, 999), steps=st.sampled_from([1, 2, 4, 8, None]))
@settings(deadline=None, max_examples=30)
def test_static_confidence_is_followed_in_its_order(seed: int, steps: int | None) -> None:
    chances = torch.rand(8, generator=torch.Generator().manual_seed(seed)).tolist()
    quota = schedulers.registry.create({"name": "fixed_quota", "steps": steps})
    count = 8 if steps is None else steps
    static = [chances] * count

    def of_quota() -> list[str]:
        masked, seen = torch.ones(1, 8, dtype=torch.bool), []
        for step in range(count):
            view = view_of(masked, block_step=step)
            masked = masked & ~quota.decide(likely(chances), view).commit
            seen.append("".join("." if is_open else "#" for is_open in masked[0].tolist()))
        return seen

    assert follow(rcr(steps=steps), *static) == of_quota()


@pytest.mark.few(2)
@pytest.mark.parametrize("steps", [2, 6, 12, 24])
def test_forwards_of_rcr_are_its_steps(steps: int) -> None:
    for schedule in ("linear", "cosine"):
        out = run({"name": "rcr", "steps": steps, "schedule": schedule})
        assert [row.forwards for row in out.metrics.rows] == [steps] * 4
    with pytest.raises(ValueError, match="positive multiple of the 2 blocks"):
        run("rcr:steps=7")


# Re-masking


def remdm(**options: Any) -> Scheduler:
    return schedulers.registry.create({"name": "remdm", **options})


def test_a_second_chance_by_hand() -> None:
    method = remdm(remask=1, begin=0.5, loops=2)
    steps = follow(
        method,
        [0.9, 0.3, 0.2, 0.1],
        [0.9, 0.5, 0.2, 0.1],  # half of it is there: 0.5, just committed, stays open
        [0.9, 0.2, 0.8, 0.7],  # 0.8 is committed, 0.9 has more than that: open again
        [0.9, 0.2, 0.85, 0.8],
        [0.9, 0.2, 0.1, 0.8],
        [0.9, 0.2, 0.1, 0.8],
    )
    assert steps == ["#...", "#...", "#...", "#.#.", "#.##", "####"]
    # A token of before is opened when it is the least sure one.
    second = follow(remdm(remask=1, begin=0.5, loops=1), [0.4, 0.3, 0.2, 0.1], [0, 0.7, 0.5, 0.1])
    assert second == ["#...", ".#.."]


# dkv feeds a revising method's whole block, and so fresher keys.
@pytest.mark.few(1)
@pytest.mark.parametrize("cache", [cache for cache in CACHES if cache != "dkv"], ids=str)
def test_without_remasking_it_is_its_base(cache: Any) -> None:
    for per_step, steps in ((1, 24), (3, 8), (12, 2)):
        base = run(f"fixed_quota:steps={steps}", cache=cache)
        for none in ("remask=0", "loops=0"):
            out = run(f"remdm:{none},per_step={per_step}", cache=cache)
            assert out.sequences == base.sequences
            assert torch.equal(out.trace.commit_step, base.trace.commit_step)


@pytest.mark.few(1)
@pytest.mark.parametrize(("remask", "loops", "begin"), [(1, 8, 0.875), (2, 5, 0.5), (3, 4, 1.0)])
def test_masks_stand_still_while_it_loops(remask: int, loops: int, begin: float) -> None:
    options = {"remask": remask, "loops": loops, "begin": begin}
    # Sampled, as the authors do: the same tokens would come again otherwise.
    out = run({"name": "remdm", **options}, temperature=1.0, seed=0)
    for row, prompt in enumerate(random_prompts(4)):
        assert out.metrics.rows[row].forwards == 2 * (BLOCK + loops)
        masks = [canvas[len(prompt) :].count(126) for canvas in out.trace.replay(row)]
        assert len(masks) <= 2 * (BLOCK + loops) + 1
    writes = [
        token for steps in map(out.trace.commits, range(4)) for step in steps for _, token in step
    ]
    assert writes.count(126) > 0


def test_what_is_opened_is_at_most_what_is_there() -> None:
    everything = follow(remdm(remask=99, begin=0.25, loops=1), *[[0.9, 0.8, 0.7, 0.6]] * 4)
    assert everything == ["....", "#...", "##..", "###."]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("remdm:remask=-1", "must be at least 0"),
        ("remdm:loops=-1", "must be at least 0, or none"),
        ("remdm:per_step=0", "at least 1"),
        ("remdm:begin=0", r"in \(0, 1\]"),
        ("rcr:schedule=sideways", "must be"),
    ],
)
def test_wrong_options_are_explained(given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedulers.registry.create(given)


# What one sees of it


def test_what_is_masked_again_is_shown_as_a_mask(tiny: dllm.HostedModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 16, "block_length": 16, "at_eos": "ignore"}
    running = dllm.stream(
        tiny,
        "copy: tom, ann.",
        scheduler="remdm:remask=3,begin=0.3",
        temperature=1.0,
        seed=0,
        **options,
    )
    num_seen = 0
    for event in running:
        start = int(running.canvas.prompt_length[0])
        again = event.columns[0][event.remasked[0]].tolist()
        assert not (event.remasked & event.committed).any()
        line = command._row(running, event, 0)
        styles = [str(span.style) for span in line.spans]
        assert styles.count(command.AGAIN) == len(again)
        for column in again:
            assert int(running.canvas.tokens[0, column]) == tiny.spec.mask_token_id
            assert column >= start
        num_seen += len(again)
    assert num_seen > 0
