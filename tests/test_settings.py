"""Settings: any length, published argument lines, and methods at the ends of what they take."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

import dllm
from dllm.aliases import ALIASES, SCHEDULER_OPTIONS, WITHOUT_EFFECT
from dllm.settings import Given
from tests.support.models import golden_model, random_prompts

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}


@pytest.fixture
def model() -> dllm.HostedModel:
    return golden_model("llada_gqa")


@pytest.mark.parametrize("block", [1, 2, 8])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_variants_may_be_more_than_columns(block: int, cache: str) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 16,
        "block_length": block,
        "cache": cache,
        "at_eos": "ignore",
    }
    many = dllm.generate(*asked(), scheduler="lopa:0.999,branches=10,blocks=1", **options)
    assert [row.raw_tokens for row in many.metrics.rows] == [16, 16]
    if block == 1:  # nothing is left to look ahead to
        assert (
            many.sequences == dllm.generate(*asked(), scheduler="fixed_quota", **options).sequences
        )


def test_deferred_tokens_alone_may_pass_the_filters() -> None:
    options: dict[str, Any] = {"scheduler": "dream", "temperature": 0.4, "top_p": 0.5, "seed": 0}
    out = dllm.generate(*asked(), max_new_tokens=64, defer_eos=True, **options)
    assert all("#### " in str(text) for text in out.texts or ())


@pytest.mark.parametrize("at_eos", ["truncate", "stop", "skip", "block", "ignore"])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_a_planned_order_goes_on_where_a_row_was_cut(at_eos: str, guidance_scale: float) -> None:
    model, prompts = asked()
    options: dict[str, Any] = {
        "scheduler": "fixed_quota:order=planned",
        "cache": "dkv_greedy:window=0,refresh=9",
        "max_new_tokens": 48,
        "block_length": 16,
        "at_eos": at_eos,
        "guidance_scale": guidance_scale,
    }
    together = dllm.generate(model, prompts, seed=[5, 6], **options)
    alone = [dllm.generate(model, prompts[i], seed=[5 + i], **options) for i in range(2)]
    assert together.sequences == tuple(one.sequences[0] for one in alone)
    assert [r.forwards for r in together.metrics.rows] == [
        one.metrics.rows[0].forwards for one in alone
    ]


def asked() -> tuple[dllm.HostedModel, list[str]]:
    """Returns the embedded model and two questions that it answers."""
    one = "tom has 53 pens. tom loses 3. how many pens does tom have?"
    two = "ann has 5 eggs. ann buys 7 more. how many eggs does ann have?"
    return dllm.load("tiny"), [one, two]


LINES: list[tuple[str, dict[str, Any], str, str]] = [  # as published, with smaller lengths
    (
        "LLaDA generate.py",
        {"steps": 64, "gen_length": 64, "block_length": 32, "temperature": 0.0, "cfg_scale": 0.0}
        | {"remasking": "low_confidence", "logits_eos_inf": False}
        | {"confidence_eos_eot_inf": False},
        "fixed_quota:64",
        "none",
    ),
    (
        "LLaDA chat.py",
        {"steps": 32, "gen_length": 64, "block_length": 32},
        "fixed_quota:32",
        "none",
    ),
    (
        "Fast-dLLM llada generate.py",
        {"steps": 64, "gen_length": 64, "block_length": 32, "temperature": 0.0}
        | {"remasking": "low_confidence", "threshold": None, "factor": None},
        "fixed_quota:64",
        "none",
    ),
    (
        "Fast-dLLM llada eval_llada.py, parallel with dual cache",
        {"gen_length": 64, "steps": 2, "block_length": 32, "use_cache": True, "dual_cache": True}
        | {"threshold": 0.9, "show_speed": True},
        "threshold:0.9",
        "dual",
    ),
    (
        "Fast-dLLM llada eval_llada.py, prefix cache",
        {"gen_length": 64, "steps": 64, "block_length": 32, "use_cache": True},
        "fixed_quota:64",
        "prefix",
    ),
    (
        "Fast-dLLM llada eval_llada.py, factor",
        {"gen_length": 64, "steps": 2, "block_length": 32, "use_cache": True, "factor": 1.0},
        "factor:1.0",
        "prefix",
    ),
    (
        "Fast-dLLM dream eval.py",
        {"max_new_tokens": 64, "diffusion_steps": 64, "temperature": 0.0, "top_p": 0.9}
        | {"alg": "confidence_threshold", "threshold": 0.9, "alg_temp": 0.0, "block_length": 32}
        | {"use_cache": True, "dual_cache": True},
        "quota_threshold:0.9,steps=64",
        "dual",
    ),
    (
        "Dream diffusion_generate",
        {"max_new_tokens": 64, "output_history": True, "return_dict_in_generate": True}
        | {"steps": 64, "temperature": 0.2, "top_p": 0.95, "alg": "entropy", "alg_temp": 0.0},
        "dream:entropy,steps=64,order_temperature=0.0",
        "none",
    ),
    (
        "dInfer benchmark, threshold",
        {"gen_len": 64, "block_length": 32, "parallel_decoding": "threshold", "threshold": 0.9}
        | {"cache": "dual", "prefix_look": 16, "after_look": 16},
        "threshold:0.9",
        "dual:vicinity_before=16,vicinity_after=16",
    ),
    (
        "dInfer benchmark, credit",
        {"gen_len": 64, "block_length": 32, "parallel_decoding": "threshold", "threshold": 0.8}
        | {"cache": "dual", "use_credit": True},
        "credit:0.8",
        "dual",
    ),
    (
        "dInfer benchmark, hierarchy",
        {"gen_len": 64, "block_length": 32, "parallel_decoding": "hierarchy", "threshold": 0.92}
        | {"low_threshold": 0.62, "cache": "prefix"},
        "hierarchical:0.92,low_threshold=0.62",
        "prefix",
    ),
    (
        "d2Cache",
        {"gen_length": 64, "block_length": 32, "num_transfer_tokens": 2, "cache": "d2cache"},
        "fixed_quota:tokens_per_step=2",
        "d2cache",
    ),
]


@pytest.mark.parametrize("line", LINES, ids=[line[0] for line in LINES])
def test_published_argument_lines_mean_what_they_mean_there(
    line: tuple[str, dict[str, Any], str, str],
) -> None:
    model, prompts = asked()
    _, given, scheduler, cache = line
    running = dllm.stream(model, prompts[:1], seed=0, **given)
    assert running.scheduler == dllm.schedulers.registry.create(scheduler)
    assert running.cache == dllm.cache.registry.create(cache)
    for _ in running:
        pass
    assert "#### " in str(running.output.texts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0.9, "scheduler": "factor"}, "threshold=0.9 sets scheduler a second time"),
        ({"alg": "entropy", "threshold": 0.9}, "threshold=0.9 sets scheduler a second time"),
        ({"remasking": "random", "threshold": 0.9}, "remasking='random' sets scheduler a second"),
        ({"use_cache": True, "cache": "dual"}, "use_cache=True sets cache a second time"),
    ],
)
def test_words_that_contradict_each_other(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dllm.stream(*asked(), **given)


@pytest.mark.parametrize(("slots", "block"), [(10, 4), (7, 16), (1, 8), (13, 5), (33, None)])
@pytest.mark.parametrize(
    "scheduler", ["threshold:0.6", "fixed_quota", "lopa:0.6", "quota_threshold"]
)
@pytest.mark.parametrize("cache", ["none", "dual", "prefix"])
def test_any_length_goes_with_any_block_length(
    model: dllm.HostedModel, slots: int, block: int | None, scheduler: str, cache: str
) -> None:
    prompts = random_prompts(3)
    options: dict[str, Any] = {"max_new_tokens": slots, "block_length": block, "cache": cache}
    out = dllm.generate(model, prompts, scheduler=scheduler, at_eos="ignore", **options)
    assert [row.raw_tokens for row in out.metrics.rows] == [slots] * 3
    for prompt, sequence in zip(prompts, out.sequences, strict=True):
        alone = dllm.generate(model, prompt, scheduler=scheduler, at_eos="ignore", **options)
        assert alone.sequences[0] == sequence
        assert len(sequence) == len(prompt) + slots


def test_a_constant_number_a_step(model: dllm.HostedModel) -> None:
    out = dllm.generate(
        model, [[1, 2, 3]], scheduler="fixed_quota:tokens_per_step=3", at_eos="ignore", **SLOTS
    )
    steps = [len(commits) for commits in out.trace.commits(0)]
    assert steps == [3, 3, 2, 3, 3, 2]


def test_editors_see_every_setting() -> None:
    given = set(Given.__annotations__) - {"input_ids", "attention_mask"}
    assert given == {f.name for f in fields(dllm.Settings)} | {*ALIASES, *SCHEDULER_OPTIONS} | {
        *WITHOUT_EFFECT
    }
