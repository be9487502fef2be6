"""The embedded model: loads like any checkpoint, obeys the laws, shows the trade-off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.eval.tasks import TASKS
from tests.support.laws import PLAIN, SCHEDULERS, caches_on, core_of, options_of, suited

FRESH_SEED = 2026  # of problems that no decision about the model was taken on
FAST = [("fixed_quota:steps=8", "none"), ("threshold:0.9", "dual"), ("dream:entropy", "prefix")]


def accuracy(model: dllm.HostedModel, count: int, **given: Any) -> float:
    task = TASKS["arithmetic"]
    problems = task.take(count, seed=FRESH_SEED)
    right = 0
    for start in range(0, count, 50):
        part = problems[start : start + 50]
        out = dllm.generate(model, [problem.prompt for problem in part], **given)
        assert out.texts is not None
        right += sum(task.is_correct(p, text) for p, text in zip(part, out.texts, strict=True))
    return right / count


def test_checkpoint_is_small_and_complete() -> None:
    folder = Path(dllm.__file__).parent / "tiny" / "checkpoint"
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(files)
    assert max(files.values()) < 16e6


def test_it_answers_in_the_fast_suite(tiny: dllm.HostedModel) -> None:
    assert accuracy(tiny, 25, scheduler="threshold:0.95") >= 0.8


def check_batch_invariance(tiny: dllm.HostedModel, scheduler: Any, cache: Any, count: int) -> None:
    prompts = [problem.prompt for problem in TASKS["arithmetic"].take(count)]
    tiny = suited(tiny, scheduler)
    options = options_of(scheduler, max_new_tokens=32, block_length=8, cache=cache)
    alone = [dllm.generate(tiny, p, seed=[i], **options) for i, p in enumerate(prompts)]
    order = [(5 * place + 1) % count for place in range(count)]
    together = dllm.generate(tiny, [prompts[i] for i in order], seed=order, **options)
    for place, row in enumerate(order):
        assert together.sequences[place] == alone[row].sequences[0]
        assert together.metrics.rows[place] == alone[row].metrics.rows[0]


@pytest.mark.few(2)
@pytest.mark.parametrize(("scheduler", "cache"), FAST)
def test_a_row_does_not_depend_on_its_batch(
    tiny: dllm.HostedModel, scheduler: Any, cache: Any
) -> None:
    check_batch_invariance(tiny, scheduler, cache, count=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "cache"),
    [(it, core_of(it)) for it in SCHEDULERS] + [(PLAIN, c) for c in caches_on("tiny")],
)
@pytest.mark.parametrize("count", [6, pytest.param(16, marks=pytest.mark.whole)])
def test_every_scheduler_and_cache_is_batch_invariant(
    tiny: dllm.HostedModel, scheduler: Any, cache: Any, count: int
) -> None:
    check_batch_invariance(tiny, scheduler, cache, count)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.whole)])
def test_the_trade_off_on_held_out_problems(tiny: dllm.HostedModel, count: int) -> None:
    assert accuracy(tiny, count, scheduler="fixed_quota") >= 0.95
    at_once = {"scheduler": "threshold:0", "max_new_tokens": 64, "block_length": 64}
    assert accuracy(tiny, count, **at_once) <= 0.45
