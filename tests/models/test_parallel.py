"""A network over two processes computes what it computes in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import dllm
from tests.support import GOLDEN

NETWORKS = ("llada_mha", "dream_gqa", "llada2_moe", "llada_moe", "sdar_dense", "fast_dllm_v2")
FEW_CACHES = ("wedlm", "e2d2_tied")  # most caches are refused with them


def compared(folder: str) -> dict[str, Any]:
    """Returns what two processes found, on gloo."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "tests.support.ranks", folder],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, *FEW_CACHES])
def test_tokens_and_logits_are_those_of_one_process(name: str) -> None:
    found = compared(str(GOLDEN / "models" / name))
    # LLaDA 2 scores experts, adds them up and has logits in float32, whatever the weights are.
    assert found["apart"] < (1e-5 if name == "llada2_moe" else 1e-10)
    assert found["other"] == []
    assert found["ran"] >= (2 if name in FEW_CACHES else 6)
    assert found["share"] < 0.6


def test_a_process_started_alone_is_told_how_to_start_more() -> None:
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        dllm.load("tiny", tensor_parallel=2)


def test_one_process_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 processes"):
        dllm.load("tiny", tensor_parallel=1)


@pytest.mark.parametrize(
    "option", [{"speed": "fused"}, {"device_map": "auto"}], ids=["speed", "device_map"]
)
def test_what_does_not_go_with_it_is_refused(
    option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=next(iter(option))):
        dllm.load("tiny", tensor_parallel=2, **option)


def test_more_processes_than_asked_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes were started"):
        dllm.load("tiny", tensor_parallel=2)


def test_heads_that_cannot_be_shared_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(ValueError, match="num_kv_heads"):
        dllm.load("tiny", tensor_parallel=7)
