"""On a GPU: real graphs, real machine code and the compiled kernel change no token."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm
from dllm.kernels import statistics
from dllm.kernels.statistics import in_one_pass
from dllm.models.speed.captured import Captured, CaptureError, CudaRecorder
from tests.support.speed import PROMPTS, decode, decodings, model_of
from tests.support.statistics import NARROW, assert_same, random_logits

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
PLACES = range(len(decodings()))
WAYS = [("fused",), ("captured",), ("compiled",), ("fused", "compiled", "captured")]


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@cache
def on_gpu(name: str) -> dllm.HostedModel:
    model = model_of(name)
    return replace(model, network=deepcopy(model.network).to(CUDA))


def faster(name: str, *ways: Any) -> dllm.HostedModel:
    """Returns a model of its own, because some ways change the network."""
    return dllm.speed_up(replace(on_gpu(name), network=deepcopy(on_gpu(name).network)), *ways)


@cache
def expected(place: int) -> Any:
    name, settings = decodings()[place]
    return decode(on_gpu(name), settings)


@pytest.mark.parametrize("ways", WAYS, ids="+".join)
@pytest.mark.parametrize("place", PLACES)
def test_tokens_are_those_of_the_passes_themselves(place: int, ways: Any) -> None:
    name, settings = decodings()[place]
    model = faster(name, *ways)
    for _ in range(3):
        assert decode(model, settings) == expected(place)
    if "captured" in ways:
        assert isinstance(model.runner, Captured)
        assert model.runner.failed is None
        assert model.runner.num_captured > 0


def test_generations_at_the_same_time() -> None:
    model = faster("llada_gqa", "captured")
    options: dict[str, Any] = {"cache": "dual", "max_new_tokens": 32, "block_length": 8}
    alone = [dllm.generate(on_gpu("llada_gqa"), [p], **options).sequences for p in PROMPTS]
    for _ in range(3):
        streams = [dllm.stream(model, [prompt], **options) for prompt in PROMPTS]
        running = [iter(one) for one in streams]
        while running:
            running = [one for one in running if next(one, None) is not None]
        assert [one.output.sequences for one in streams] == alone


def test_graphs_that_are_dropped_leave_no_trace() -> None:
    """Few are kept, so that they come and go, and K/V memory grows in between."""
    model = faster("llada_mha", "captured")
    assert isinstance(model.runner, Captured)
    model.runner.most = 2
    settings: dict[str, Any] = {"cache": "dual", "scheduler": "fixed_quota", "block_length": 8}
    for columns in (16, 32, 64, 128, 32, 16):
        for _ in range(3):
            ours = dllm.generate(model, PROMPTS, max_new_tokens=columns, **settings)
            usual = dllm.generate(on_gpu("llada_mha"), PROMPTS, max_new_tokens=columns, **settings)
            assert ours.sequences == usual.sequences
    assert model.runner.num_captured == 2


def test_work_that_cannot_be_captured(caplog: pytest.LogCaptureFixture) -> None:
    recorder = CudaRecorder(CUDA)
    number = torch.ones(3, device=CUDA)
    with pytest.raises(CaptureError):
        recorder.record(lambda: print(number.sum().item()))
    # The device is as it was: what can be captured still is.
    out = torch.zeros(3, device=CUDA)
    replay = recorder.record(lambda: out.copy_(2 * number))  # type: ignore[arg-type]
    number.fill_(5)
    replay()
    assert out.tolist() == [10, 10, 10]


def test_a_failed_capture_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = faster("llada_gqa", "captured")

    def refuse(*_: Any) -> Any:
        raise CaptureError("not now")

    monkeypatch.setattr(CudaRecorder, "_capture", refuse)
    with caplog.at_level(logging.WARNING, "dllm"):
        for _ in range(2):
            name, settings = decodings()[0]
            assert decode(faster(name), settings) == expected(0)
            decode(model, settings)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("size", [(1, 1, 2), (2, 3, 2049), (1, 8, 126464), (2, 32, 152064)])
def test_the_kernel_equals_float64(size: Any, dtype: torch.dtype) -> None:
    logits = random_logits(*size).to(CUDA, dtype)
    assert_same(in_one_pass(logits, size[-1] - 1), logits, size[-1] - 1, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_the_kernel_changes_no_token(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = decodings()[place]
    given = expected(place)
    monkeypatch.setattr(statistics, "has_kernel", lambda device: False)
    assert decode(on_gpu(name), settings) == given


def test_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = ["-m", "benchmarks.gpu", "--shape", "tiny", "--device", "cuda", "--repeats", "2"]
    done = subprocess.run(
        [sys.executable, *command, "--output", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (shape,) = json.loads(file.read_text())["shapes"]
    assert {way for line in shape["steps"] for way in line["ways"]} >= {"eager", "captured"}
