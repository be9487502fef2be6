"""A step starts as many operations as was committed, and the guard sees what changed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from benchmarks.check import RECORD, compare
from benchmarks.counts import COUNTED, count

COMMITTED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
SAME_TORCH = COMMITTED["machine"]["torch"] == torch.__version__


@pytest.mark.few(3)
@pytest.mark.parametrize(("scheduler", "cache"), COUNTED)
def test_counts_are_those_committed(scheduler: str, cache: str) -> None:
    committed, now = COMMITTED["counts"][f"{scheduler}, {cache}"], count(scheduler, cache).record()
    whatever_torch = ("forwards", "waits")
    for name in committed if SAME_TORCH else whatever_torch:
        assert now[name] == committed[name], f"{name}: `make bench-check`"


def test_the_host_waits_once_a_step() -> None:
    for case, numbers in COMMITTED["counts"].items():
        assert numbers["waits"] == numbers["forwards"] - 1, case


def check(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(importlib.import_module("benchmarks.check").main)
    return CliRunner().invoke(app, arguments)


def test_the_verdict(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(COMMITTED))
    done = check("--counts", "--record", str(kept))
    if SAME_TORCH:
        assert done.exit_code == 0, done.output
        assert "as committed: 40 of 40" in done.output
    COMMITTED["counts"]["klass, dual"]["forwards"] += 1
    kept.write_text(json.dumps(COMMITTED))
    COMMITTED["counts"]["klass, dual"]["forwards"] -= 1
    done = check("--counts", "--record", str(kept))
    assert done.exit_code == 1
    assert "klass, dual: forwards" in done.output
    assert "make bench-check ARGS=--renew" in done.output
    assert check("--counts", "--renew").exit_code == 2


def record(torch_version: str, device: str, ratios: dict[str, float]) -> dict[str, Any]:
    counts = {"case": {"forwards": 4, "outside": 10}}
    return {
        "machine": {"torch": torch_version, "device": device},
        "counts": counts,
        "ratios": ratios,
    }


def test_ratios_have_a_tolerance_in_their_own_direction() -> None:
    faster, share = "times the textbook loop, same dual cache", "outside the model: a, b"
    before = record("2", "here", {faster: 2.0, share: 0.10})
    for ratios, good in (
        ({faster: 1.7, share: 0.115}, True),
        ({faster: 9.0, share: 0.01}, True),
        ({faster: 1.5, share: 0.115}, False),
        ({faster: 1.7, share: 0.13}, False),
    ):
        found = compare(before, record("2", "here", ratios))
        assert all(one.good for one in found) == good
        assert all(one.judged for one in found)


def test_another_torch_or_machine_is_not_judged_where_it_decides() -> None:
    ratios = {"outside the model: a, b": 0.1}
    found = compare(record("2", "here", ratios), record("3", "there", ratios))
    assert [one.what for one in found if one.judged] == ["case: forwards"]
    assert [one.verdict for one in found] == ["good", "not judged", "not judged"]
