"""Prompts that begin as others did: what is read once serves them all, and changes no token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import dllm
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.prompt_memory import SeatMemory
from dllm.serve.engine import Engine
from dllm.serve.job import Job
from tests.support.calling import calling_model
from tests.support.models import random_prompts, speaking_model
from tests.support.serving import Heard, assert_as_alone, job_of, running
from tests.support.vocabularies import byte_level

COMMON = random_prompts(1, seed=9, low=61, high=62)[0]
# Lengths of which several begin a block at the same place, wherever blocks are counted from.
OWN = [random_prompts(1, n, length, length + 1)[0] for n, length in enumerate([3, 11, 3, 4] * 3)]
PROMPTS = [[*COMMON, *own] for own in OWN]
BLOCK = 8
OPTIONS: dict[str, Any] = {"cache": "block_causal", "max_new_tokens": 16, "scheduler": "threshold"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sdar", {}),
    ("sdar", {"temperature": 0.8}),
    ("sdar", {"scheduler": "fixed_quota", "block_length": 4}),
    ("sdar", {"cache": "block_causal:prefill_chunk=16"}),
    ("sdar", {"verifier": "ssd:draft_length=3", "scheduler": "fixed_quota"}),
    ("sdar", {"cache": "sub_block", "block_length": 8}),
    ("llada2_moe", {}),
    ("fast_dllm_v2", {}),
    ("bd3lm", {}),
    ("wedlm", {"cache": "streaming", "scheduler": "wedlm"}),
]


@cache
def model_of(name: str) -> dllm.HostedModel:
    return speaking_model(name, byte_level(()))


def asked_of(model: Any, prompts: Any, **options: Any) -> list[tuple[Job, Heard]]:
    return [job_of(model, one, seed, **options) for seed, one in enumerate(prompts)]


@pytest.mark.parametrize(("name", "more"), CASES, ids=[f"{n}-{m}" for n, m in CASES])
@pytest.mark.parametrize("seats", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_answers_are_those_of_a_prompt_alone(name: str, more: dict[str, Any], seats: int) -> None:
    model, options = model_of(name), {**OPTIONS, **more}
    asked = asked_of(model, PROMPTS, **options)
    with running(Engine(model, max_rows=seats)) as engine:
        engine.submit([job for job, _ in asked])
        answers = [heard.wait() for _, heard in asked]
    for (job, _), answer, prompt in zip(asked, answers, PROMPTS, strict=True):
        assert_as_alone(model, job, answer, prompt, **options)
        assert answer.reused <= len(prompt)
    anew = sum(answer.reused < len(COMMON) // BLOCK * BLOCK for answer in answers)
    if model.spec.blocks_from == "zero":
        assert anew <= seats, "of the first canvas alone"
    else:  # blocks are counted from the prompt's end: those of other lengths cut it elsewhere
        assert anew < len(answers)


def test_rows_that_enter_take_over_from_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a row that is still decoded, and from one whose seat is taken."""
    model, handed = model_of("sdar"), []
    hand_over = SeatMemory.hand_over

    def noting(self: SeatMemory, *rows: Any) -> list[int]:
        handed.extend(found := hand_over(self, *rows))
        return found

    monkeypatch.setattr(SeatMemory, "hand_over", noting)
    options = {**OPTIONS, "scheduler": "threshold:0.3", "temperature": 1.0}  # of different lengths
    prompts = [random_prompts(1, 70, 64, 65)[0], PROMPTS[0], *PROMPTS[2::4], *PROMPTS[4::4]]
    asked = asked_of(model, prompts, **options)
    with running(Engine(model, max_rows=2)) as engine:
        engine.submit([job for job, _ in asked])
        answers = [heard.wait() for _, heard in asked]
    for (job, _), answer, prompt in zip(asked, answers, prompts, strict=True):
        assert_as_alone(model, job, answer, prompt, **options)
    assert handed
    assert max(handed) >= len(COMMON) // BLOCK * BLOCK


def test_fewer_columns_are_fed() -> None:
    model = model_of("sdar")
    asked = asked_of(model, PROMPTS, **OPTIONS)
    others = random_prompts(12, seed=5, low=70, high=80)
    apart = asked_of(model, others, **OPTIONS)
    fed = []
    for jobs in (asked, apart):
        with running(Engine(model, max_rows=1)) as engine:
            engine.submit([job for job, _ in jobs])
            assert all(heard.wait() for _, heard in jobs)
        fed.append(engine.counts.fed)
    assert fed[0] < fed[1] - 10 * (len(COMMON) // BLOCK * BLOCK)


def test_a_conversation_goes_on() -> None:
    """The next request of a chat finds what the last one read and wrote, though nobody waited."""
    model = calling_model()
    chat: list[dict[str, str]] = [{"role": "user", "content": "tell a story"}]
    with running(Engine(model)) as engine:
        for turn in range(3):
            job, heard = job_of(model, chat, **OPTIONS)
            engine.submit([job])
            answer = heard.wait()
            assert_as_alone(model, job, answer, chat, **OPTIONS)
            assert bool(answer.reused) == bool(turn)
            chat = [*chat, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "?"}]
        held = engine.memory.num_bytes
        assert held > 0
        job, heard = job_of(model, chat, **OPTIONS)
        engine.submit([job])
        heard.wait()
        assert engine.memory.num_bytes <= 2 * held, "the last canvas alone is kept"


def test_what_failed_is_not_handed_on() -> None:
    model = model_of("sdar")
    poisoned, good = ([*COMMON, 200], [*COMMON, 6])

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def forward(self, tokens: Any, plan: Any, store: Any) -> Any:
            logits = model.forward(tokens, plan, store)
            wrong = (tokens == 200).any(1)
            if wrong.any():
                store.keys[0].fill_(torch.nan)
            return torch.where(wrong[:, None, None], torch.nan, logits)

    failing: Any = Failing()
    options = {**OPTIONS, "forbidden_token_ids": [200]}
    asked = asked_of(failing, [poisoned, good], **options)
    with running(Engine(failing, max_rows=1)) as engine:
        engine.submit([asked[0][0]])
        assert asked[0][1].over.wait(60)
        assert isinstance(asked[0][1].error, BrokenLogitsError)
        assert engine.memory.num_bytes == 0
        engine.submit([asked[1][0]])
        answer = asked[1][1].wait()
    assert answer.reused == 0
    assert_as_alone(model, asked[1][0], answer, good, **options)


def test_a_model_whose_columns_all_see_each_other_reads_again(tiny: dllm.HostedModel) -> None:
    prompt = "tom has 53 pens. tom loses 3. how many pens does tom have?"
    asked = asked_of(tiny, [prompt] * 3, max_new_tokens=16, block_length=8)
    with running(Engine(tiny, max_rows=1)) as engine:
        engine.submit([job for job, _ in asked])
        assert [heard.wait().reused for _, heard in asked] == [0, 0, 0]
        assert engine.memory.num_bytes == 0
