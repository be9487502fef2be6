"""Answers of several lengths that share a canvas, and prompts that end at any place of a block."""

from __future__ import annotations

from typing import Any

import pytest

import dllm
from dllm.serve.engine import Engine
from dllm.serve.job import Key
from tests.support.laws import OF_SCHEDULERS, settings_of, text_of
from tests.support.models import random_prompts, speaking_model
from tests.support.serving import assert_as_alone, job_of, running
from tests.support.vocabularies import byte_level

LENGTHS = (24, 8, 40, 16, 9, 33)


MODEL = speaking_model("sdar", byte_level(()))


def serve_lengths(model: Any, **options: Any) -> set[Key]:
    """Checks answers of several lengths; returns the keys of their canvases."""
    prompts = [[3 + token % 100 for token in one] for one in random_prompts(6, 2, 3, 30)]
    asked = [
        job_of(model, prompt, seed, max_new_tokens=count, **options)
        for seed, (prompt, count) in enumerate(zip(prompts, LENGTHS, strict=True))
    ]
    engine = Engine(model, max_rows=3)
    engine.submit([job for job, _ in asked])
    with running(engine):
        answers = [heard.wait() for _, heard in asked]
    for (job, _), answer, prompt, count in zip(asked, answers, prompts, LENGTHS, strict=True):
        assert_as_alone(model, job, answer, prompt, max_new_tokens=count, **options)
    return {job.key for job, _ in asked}


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler", settings_of(dllm.schedulers.registry, OF_SCHEDULERS), ids=text_of
)
def test_answers_are_those_of_a_request_alone(scheduler: Any) -> None:
    options = {"scheduler": scheduler, "cache": "block_causal"}
    try:
        for count in LENGTHS:
            job_of(MODEL, [3, 4, 5], max_new_tokens=count, **options)
    except ValueError as error:
        pytest.skip(f"refused, for one as for many: {error}")
    serve_lengths(MODEL, **options)


@pytest.mark.parametrize("cache", ["block_causal", "sub_block"])
def test_one_canvas_serves_several_lengths(cache: str) -> None:
    options: dict[str, Any] = {"scheduler": "threshold:0.3", "temperature": 0.9}
    assert len(serve_lengths(MODEL, cache=cache, **options)) == 1


def test_others_have_a_canvas_each(tiny: dllm.HostedModel) -> None:
    options: dict[str, Any] = {"scheduler": "threshold", "block_length": 8}
    for cache in ("none", "dual"):
        assert len(serve_lengths(tiny, cache=cache, **options)) == len(LENGTHS)
    held: dict[str, Any] = {"cache": "block_causal", "constraint": {"regex": "[ab]*"}}
    keys = {job_of(MODEL, [3], max_new_tokens=n, **held)[0].key for n in LENGTHS}
    assert len(keys) > 1
