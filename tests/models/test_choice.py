"""The ways that are taken without being asked for, on machines that are described."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

import dllm
from dllm.models.loading.empty import empty_network
from dllm.models.speed import choice as speed_choice
from dllm.models.speed import ways_of
from dllm.models.speed.choice import PAYS, SMALL, Subject, choose, subject_of, try_packed
from dllm.models.speed.machine import Machine, machine_of
from dllm.models.speed.packed import PackedLinear
from tests.support import GOLDEN
from tests.support.models import golden_model

GIB = 2**30
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
MACHINES = {
    "avx2": Machine("cpu", (BFLOAT16, torch.float16), (FLOAT32,), 64 * GIB, True),
    "amx": Machine("cpu", (torch.float16,), (FLOAT32, BFLOAT16), 64 * GIB, True),
    "arm": Machine("cpu", (), (), 64 * GIB, False),
    "full": Machine("cpu", (), (FLOAT32, BFLOAT16), 8 * GIB, True),
    "silent": Machine("cpu", (), (FLOAT32, BFLOAT16), None, True),
    "cuda": Machine("cuda", (), (), 80 * GIB, True),
    "mps": Machine("mps", (), (), 64 * GIB, False),
}
LARGE = Subject(1_700_000_000, 3_400_000_000, BFLOAT16, (2048, 6144))
WIDE = replace(LARGE, dtype=FLOAT32, weight_bytes=6_800_000_000)


def never(subject: Subject) -> float:
    raise AssertionError("nothing was to be tried")


@pytest.mark.parametrize(
    ("machine", "subject", "ratio", "ways"),
    [
        ("avx2", LARGE, None, "fused+widened"),
        ("avx2", replace(LARGE, dtype=torch.float16), None, "fused+widened"),
        ("avx2", WIDE, PAYS, "fused+packed"),
        ("avx2", WIDE, PAYS - 0.01, "fused"),
        ("avx2", replace(WIDE, dtype=torch.float64), None, "fused"),
        ("avx2", replace(LARGE, has_experts=True), None, "fused+widened"),
        ("amx", LARGE, 1.3, "fused+packed"),
        ("amx", replace(LARGE, dtype=torch.float16), None, "fused+widened"),
        ("amx", replace(LARGE, has_experts=True), None, "fused"),
        ("arm", LARGE, None, "fused"),
        ("full", LARGE, None, "fused"),
        ("silent", LARGE, None, "fused"),
        ("cuda", LARGE, None, "fused+captured"),
        ("cuda", replace(LARGE, two_stacks=True), None, "fused"),
        ("cuda", replace(LARGE, spread=True), None, "plain"),
        ("mps", LARGE, None, "plain"),
        *((name, replace(LARGE, num_parameters=SMALL - 1), None, "plain") for name in MACHINES),
    ],
)
def test_the_table(machine: str, subject: Subject, ratio: float | None, ways: str) -> None:
    found = choose(MACHINES[machine], subject, never if ratio is None else lambda _: ratio)
    assert found.ways == ways
    assert not found.taken.keys() & found.left.keys()
    assert all(found.taken.values())
    assert all(found.left.values())
    assert found.text.startswith(f"{ways} (")
    assert "\n" not in found.text
    if ways != "plain":
        known = set(ways_of(dllm.load("tiny", speed=None), torch.device("cpu")))
        assert found.taken.keys() | found.left.keys() == known


def test_what_changes_tokens_is_never_taken() -> None:
    for machine in MACHINES.values():
        found = choose(machine, WIDE, lambda _: 2.0)
        assert not {"int8", "compiled"} & found.taken.keys()


def test_a_subject_is_read_off_the_network() -> None:
    config = golden_model("llada_gqa").network.config
    found = subject_of(empty_network(config), BFLOAT16, 2)
    count = sum(weight.numel() for weight in golden_model("llada_gqa").network.parameters())
    widths = (config.hidden_size, config.intermediate_size)
    assert found == Subject(count, 2 * count, BFLOAT16, widths, spread=True)


def test_a_trial_runs_where_its_products_are() -> None:
    for dtype in machine_of(torch.device("cpu")).packs:
        assert try_packed(Subject(1, 1, dtype, (64, 128))) > 0


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading finds a machine without 16-bit arithmetic, and nothing too small for it."""
    monkeypatch.setattr(speed_choice, "SMALL", 0)
    monkeypatch.setattr("dllm.models.loading.machine_of", lambda device: MACHINES["avx2"])


def test_loading_logs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dllm.models.speed")
    dllm.load("tiny")
    (line,) = caplog.messages
    assert line.startswith("'tiny': speed='auto' takes plain (all: 1,3")
    assert "too few" in line
    caplog.clear()
    dllm.load("tiny", speed=None)
    dllm.load("tiny", speed="fused")
    assert not caplog.messages


def test_what_rounds_otherwise_is_said_aloud(avx2: None, caplog: pytest.LogCaptureFixture) -> None:
    model = dllm.load("tiny", dtype="bfloat16")
    (line,) = caplog.messages  # warnings alone
    assert "takes fused+widened" in line
    assert "no bfloat16 arithmetic" in line
    assert "dtype='float32'" in line
    assert model.network.config.fused_qkv
    assert model.name == "tiny"


def test_tokens_are_those_of_the_plain_model(monkeypatch: pytest.MonkeyPatch, avx2: None) -> None:
    monkeypatch.setattr("dllm.models.loading.try_packed", lambda subject: 2.0)
    settings: dict[str, Any] = {"max_new_tokens": 24, "block_length": 8, "seed": 0}
    for name in ("llada_gqa", "dream_gqa"):
        plain, quick = (
            dllm.load(GOLDEN / "models" / name, dtype="float32", speed=speed)
            for speed in (None, "auto")
        )
        packed = [part for part in quick.network.modules() if isinstance(part, PackedLinear)]
        assert len(packed) == bool(MACHINES["avx2"].packs) * (4 * len(quick.network.blocks) + 1)
        for cache in ("none", "dual"):
            one, other = (
                dllm.generate(m, [[3, 4, 5], [7] * 9], cache=cache, **settings)
                for m in (plain, quick)
            )
            assert one.sequences == other.sequences


def test_auto_stands_alone() -> None:
    with pytest.raises(ValueError, match="'auto' picks by itself when a model is loaded"):
        dllm.load("tiny", speed="auto+fused")
    with pytest.raises(ValueError, match="'auto' picks by itself"):
        dllm.speed_up(dllm.load("tiny"), "auto")
