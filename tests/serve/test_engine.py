"""The engine: an answer is that of its request alone, whoever else is there and whatever fails."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import pytest
import torch

import dllm
from dllm.assembly import loop_of, row_like
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.prompts import Row
from dllm.serve import wave
from dllm.serve.engine import Engine, FullError
from dllm.serve.job import LateError, StoppedError
from dllm.serve.wave import Wave
from tests.support.laws import OF_CACHES, OF_SCHEDULERS, settings_of, text_of
from tests.support.serving import LONG, assert_as_alone, job_of, running

PROMPTS = [
    "tom has 53 pens. tom loses 3. how many pens does tom have?",
    "copy: tom, ann.",
    "ann has 7 books. ann gets 12 more. how many books does ann have?",
    "count: 5.",
    "tom has 8 cups. tom loses 2. tom gets 4. how many cups does tom have?",
]
QUICK: dict[str, Any] = {
    "scheduler": "threshold:0.9",
    "cache": "dual",
    "max_new_tokens": 32,
    "block_length": 16,
}


def serve_all(model: Any, seats: int = 3, **options: Any) -> int:
    """Checks that more requests than there are seats get the answers that they get alone.

    Returns how many of them took the seat of another.
    """
    asked = [job_of(model, prompt, 7 * seed, **options) for seed, prompt in enumerate(PROMPTS)]
    engine = Engine(model, max_rows=seats)
    engine.submit([job for job, _ in asked])
    with pytest.MonkeyPatch.context() as patched:
        entered = watched(patched)
        with running(engine):
            answers = [heard.wait() for _, heard in asked]
    for (job, _), answer, prompt in zip(asked, answers, PROMPTS, strict=True):
        assert_as_alone(model, job, answer, prompt, **options)
    return len(entered)


def watched(patched: pytest.MonkeyPatch) -> list[Any]:
    """Returns a list of all rows that will enter a canvas which is decoded already."""
    entered: list[Any] = []
    enter = Wave._enter

    def noting(wave: Wave, num_free: int) -> Any:
        found = enter(wave, num_free)
        entered.extend(found)
        return found

    patched.setattr(Wave, "_enter", noting)
    return entered


@pytest.mark.parametrize(
    "scheduler", settings_of(dllm.schedulers.registry, OF_SCHEDULERS), ids=text_of
)
def test_answers_are_those_of_a_request_alone(tiny: dllm.HostedModel, scheduler: Any) -> None:
    try:
        job_of(tiny, PROMPTS[0], scheduler=scheduler, max_new_tokens=16, block_length=8)
    except ValueError as error:
        pytest.skip(f"refused, for one as for many: {error}")
    serve_all(tiny, scheduler=scheduler, max_new_tokens=16, block_length=8)


@pytest.mark.parametrize("cache", settings_of(dllm.cache.registry, OF_CACHES), ids=text_of)
def test_caches_serve_rows_that_come_and_go(tiny: dllm.HostedModel, cache: Any) -> None:
    try:
        job_of(tiny, PROMPTS[0], cache=cache, max_new_tokens=16, block_length=8)
    except ValueError as error:
        pytest.skip(f"refused, for one as for many: {error}")
    serve_all(tiny, scheduler="fixed_quota:steps=8", cache=cache, max_new_tokens=16, block_length=8)


@pytest.mark.parametrize(
    "options",
    [
        {"verifier": "ssd:draft_length=3", "scheduler": "fixed_quota"},
        {"temperature": 0.7, "scheduler": "fixed_quota"},
        {"guidance_scale": 0.5},
        {"constraint": {"regex": "[0-9]+"}},
        {"constraint": {"grammar": 'start: start "+" start | /[0-9]+/', "method": "emptiness"}},
        {"stop": ["="]},
        {"statistics_dtype": "float64", "min_new_tokens": 9},
    ],
    ids=str,
)
def test_whatever_is_asked_for(tiny: dllm.HostedModel, options: Any) -> None:
    serve_all(tiny, **{"max_new_tokens": 16, "block_length": 8, **options})


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("cache", ["none", "dual", "prefix"])
def test_seats_are_taken_while_others_are_decoded(
    tiny: dllm.HostedModel, cache: str, temperature: float
) -> None:
    options = {**QUICK, "cache": cache, "temperature": temperature, "block_length": 4}
    assert serve_all(tiny, seats=2, **options) > 0


def test_a_seat_that_is_left_is_taken(tiny: dllm.HostedModel) -> None:
    """By who waits, in the next step: those who stay would take much longer."""
    slow: dict[str, Any] = {"scheduler": "fixed_quota", "max_new_tokens": 200, "at_eos": "ignore"}
    asked = [job_of(tiny, prompt, streamed=True, **slow) for prompt in PROMPTS[:3]]
    (stays, one), (leaves, other), (comes, third) = asked
    engine = Engine(tiny, max_rows=2)
    engine.submit([job for job, _ in asked])
    with running(engine):
        while not other.steps:
            sleep(0.001)
        leaves.cancelled = True
        first = len(one.steps)
        while not third.steps:
            sleep(0.001)
        assert len(one.steps) - first < 100
        for job, heard, prompt in ((stays, one, PROMPTS[0]), (comes, third, PROMPTS[2])):
            assert_as_alone(tiny, job, heard.wait(), prompt, **slow)
    assert not other.over.is_set()


def test_many_settings_take_turns(tiny: dllm.HostedModel) -> None:
    draw = random.Random(0)
    kinds: list[dict[str, Any]] = [
        QUICK,
        {"scheduler": "fixed_quota", "max_new_tokens": 24, "temperature": 0.5},
        {"scheduler": "prophet", "cache": "prefix", "max_new_tokens": 32},
        {**QUICK, "constraint": {"regex": "[0-9]+"}, "max_new_tokens": 12},
    ]
    asked = []
    with running(Engine(tiny, max_rows=6)) as engine:
        for seed in range(40):
            prompt, options = draw.choice(PROMPTS), draw.choice(kinds)
            job, heard = job_of(tiny, prompt, seed, streamed=True, **options)
            asked.append((job, heard, prompt, options))
            engine.submit([job])
            sleep(draw.random() * 0.01)
        answers = [heard.wait() for _, heard, *_ in asked]
        assert engine.num_active == engine.num_waiting == 0
        assert engine.counts.answered == len(asked)
    for (job, heard, prompt, options), answer in zip(asked, answers, strict=True):
        assert_as_alone(tiny, job, answer, prompt, **options)
        assert "".join(heard.pieces) == answer.text
        written: dict[int, int] = {}
        for step in heard.steps:
            written |= {place: token for place, token, _ in step.committed}
        assert all(written[place] == token for place, token in enumerate(answer.tokens))


def test_a_gap_is_filled_between_texts(tiny: dllm.HostedModel) -> None:
    prompt = dllm.Infill(
        "tom has 53 pens. tom loses 3. how many pens does tom have? 53-3=", 4, "; #### 50"
    )
    job, heard = job_of(tiny, prompt, max_new_tokens=8)
    with running(Engine(tiny)) as engine:
        engine.submit([job])
        answer = heard.wait()
    out = dllm.generate(tiny, prompt, seed=0)
    start = len(job.row.prompt)
    assert job.num_open == 4
    assert answer.tokens == out.sequences[0][start : start + 4][: len(answer.tokens)]
    assert "####" not in answer.text


def test_who_leaves_frees_a_seat(tiny: dllm.HostedModel) -> None:
    slow: dict[str, Any] = {"scheduler": "fixed_quota", "max_new_tokens": 200, "at_eos": "ignore"}
    first, never = job_of(tiny, PROMPTS[0], **slow)
    second, heard = job_of(tiny, PROMPTS[1], **QUICK)
    with running(Engine(tiny, max_rows=1)) as engine:
        engine.submit([first])
        until = monotonic() + LONG
        while not engine.num_active:
            assert monotonic() < until
            sleep(0.001)
        engine.submit([second])
        first.cancelled = True
        answer = heard.wait()
        assert engine.counts.cancelled == 1
    assert not never.over.is_set()
    assert_as_alone(tiny, second, answer, PROMPTS[1], **QUICK)


def test_answers_that_come_too_late(tiny: dllm.HostedModel) -> None:
    slow: dict[str, Any] = {"scheduler": "fixed_quota", "max_new_tokens": 200, "at_eos": "ignore"}
    decoded, one = job_of(tiny, PROMPTS[0], **slow)
    waiting, other = job_of(tiny, PROMPTS[1], **QUICK)
    for job in (decoded, waiting):
        job.deadline = monotonic() + 0.2
    with running(Engine(tiny, max_rows=1)) as engine:
        engine.submit([decoded, waiting])
        for heard in (one, other):
            assert heard.over.wait(LONG)
            assert isinstance(heard.error, LateError)
        assert engine.counts.failed == 2


def test_a_full_queue_takes_none(tiny: dllm.HostedModel) -> None:
    engine = Engine(tiny, max_waiting=2)  # that has not begun
    jobs = [job_of(tiny, prompt, **QUICK)[0] for prompt in PROMPTS[:3]]
    with pytest.raises(FullError, match=r"0 answers .* at most 2"):
        engine.submit(jobs)
    engine.submit(jobs[:2])
    with pytest.raises(FullError, match=r"2 answers .* at most 2"):
        engine.submit(jobs[2:])


def test_closing_waits_for_answers(tiny: dllm.HostedModel) -> None:
    asked = [job_of(tiny, prompt, **QUICK) for prompt in PROMPTS]
    engine = Engine(tiny, max_rows=2)
    engine.start()
    engine.submit([job for job, _ in asked])
    engine.close()
    assert all(heard.answer is not None for _, heard in asked)
    with pytest.raises(StoppedError):
        engine.submit([asked[0][0]])


def test_closing_in_haste_says_so(tiny: dllm.HostedModel) -> None:
    slow: dict[str, Any] = {"scheduler": "fixed_quota", "max_new_tokens": 200, "at_eos": "ignore"}
    asked = [job_of(tiny, prompt, **slow) for prompt in PROMPTS]
    engine = Engine(tiny, max_rows=2)
    engine.start()
    engine.submit([job for job, _ in asked])
    engine.close(0.1)
    assert not engine.alive
    assert all(isinstance(heard.error, StoppedError) for _, heard in asked)


class Failing:
    """A model that fails where a row holds a token."""

    def __init__(self, model: Any, token: int, fail: Any) -> None:
        self.model, self.token, self.fail = model, token, fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Any, plan: Any, store: Any) -> Any:
        logits = self.model.forward(tokens, plan, store)
        return self.fail((tokens == self.token).any(1), logits)


def broken(rows: Any, logits: Any) -> Any:
    return torch.where(rows[:, None, None], torch.nan, logits)


def raised(rows: Any, logits: Any) -> Any:
    if rows.any():
        raise OverflowError("a fault of the model's")
    return logits


def out_of_memory(rows: Any, logits: Any) -> Any:
    if len(rows) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return logits


@pytest.mark.parametrize(("fail", "error"), [(broken, BrokenLogitsError), (raised, OverflowError)])
def test_a_poisoned_request_fails_alone(tiny: dllm.HostedModel, fail: Any, error: Any) -> None:
    assert tiny.tokenizer is not None
    poison = 41
    model = Failing(tiny, poison, fail)
    options: dict[str, Any] = {"scheduler": "fixed_quota:steps=8", "max_new_tokens": 8}
    ids = [tiny.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert not any(poison in one for one in ids)
    options["forbidden_token_ids"] = [poison]
    ids[2] = [*ids[2], poison]
    asked = [job_of(model, prompt, seed, **options) for seed, prompt in enumerate(ids)]
    with running(Engine(model, max_rows=5)) as engine:
        engine.submit([job for job, _ in asked])
        for number, (job, heard) in enumerate(asked):
            assert heard.over.wait(LONG)
            if number == 2:
                assert isinstance(heard.error, error)
            else:
                assert_as_alone(tiny, job, heard.wait(), ids[number], **options)
        assert engine.counts.failed == 1


def test_a_row_that_cannot_enter_fails_alone(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it waits in no queue any more, and has no seat yet."""
    options = {**QUICK, "block_length": 4}
    asked = [job_of(tiny, prompt, **options) for prompt in PROMPTS]
    poisoned = asked[3][0].row
    made = loop_of, row_like

    def failing(model: Any, rows: Any, *given: Any) -> Any:
        if poisoned in (rows if isinstance(rows, list) else [rows]):
            raise OverflowError("a fault of this row's")
        return made[isinstance(rows, Row)](model, rows, *given)

    monkeypatch.setattr(wave, "loop_of", failing)
    monkeypatch.setattr(wave, "row_like", failing)
    engine = Engine(tiny, max_rows=2)
    engine.submit([job for job, _ in asked])
    with running(engine):
        for number, (job, heard) in enumerate(asked):
            assert heard.over.wait(LONG), "nobody told it"
            if number == 3:
                assert isinstance(heard.error, OverflowError)
            else:
                assert_as_alone(tiny, job, heard.wait(), PROMPTS[number], **options)


def test_fewer_rows_where_memory_runs_out(tiny: dllm.HostedModel) -> None:
    model = Failing(tiny, 0, out_of_memory)
    asked = [job_of(model, prompt, **QUICK) for prompt in PROMPTS]
    with running(Engine(model, max_rows=5)) as engine:
        engine.submit([job for job, _ in asked])
        for (job, heard), prompt in zip(asked, PROMPTS, strict=True):
            assert_as_alone(tiny, job, heard.wait(), prompt, **QUICK)
        assert engine.max_rows == 1


def test_one_row_that_finds_no_memory_fails(tiny: dllm.HostedModel) -> None:
    def never(rows: Any, logits: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Failing(tiny, 0, never)
    job, heard = job_of(model, PROMPTS[0], **QUICK)
    with running(Engine(model)) as engine:
        engine.submit([job])
        assert heard.over.wait(LONG)
    assert isinstance(heard.error, NotEnoughMemoryError)


def test_jobs_of_different_length_find_room(tiny: dllm.HostedModel) -> None:
    long = " ".join(["tom has 8 cups."] * 25)
    asked = [job_of(tiny, prompt, **QUICK) for prompt in (PROMPTS[0], long, PROMPTS[1], long)]
    with running(Engine(tiny, max_rows=2)) as engine:
        for job, _ in asked:
            engine.submit([job])
        for job, heard in asked:
            assert heard.wait().row.prompt_tokens == len(job.row.prompt)


def test_worn_canvases_take_no_more(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllm.serve.wave._STEPS", 2)
    serve_all(tiny, **QUICK)


def test_keys_tell_what_cannot_share_a_canvas(tiny: dllm.HostedModel) -> None:
    job, _ = job_of(tiny, PROMPTS[0], **QUICK)
    same, _ = job_of(tiny, PROMPTS[1], 5, **QUICK)
    assert job.key == same.key
    for options in (
        {"max_new_tokens": 16},
        {"temperature": 0.5},
        {"stop": ["x"]},
        {"cache": "none"},
    ):
        other, _ = job_of(tiny, PROMPTS[0], **{**QUICK, **options})
        assert other.key != job.key
    assert replace(job.key, constrained="Constrained") != job.key


def test_nothing_stays_of_what_was_answered(tiny: dllm.HostedModel) -> None:
    asked = [job_of(tiny, prompt, **QUICK) for prompt in PROMPTS * 3]
    kept = [weakref.ref(job) for job, _ in asked]
    with running(Engine(tiny, max_rows=4)) as engine:
        engine.submit([job for job, _ in asked])
        assert all(heard.wait() for _, heard in asked)
        del asked
        until = monotonic() + LONG
        while any(one() is not None for one in kept):
            assert monotonic() < until
            gc.collect()
            sleep(0.01)
