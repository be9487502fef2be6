"""The GPU's benchmark, tried out on a CPU: its command, its floors, its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import gpu, gpu_table
from benchmarks.roofs import Roofs, pass_bytes
from benchmarks.shapes import random_model

SMALL = ["--device", "cpu", "--dtype", "float32", "--repeats", "1", "--num-keys", "48"]
app = typer.Typer()
app.command()(gpu.main)


def run(*options: str) -> Any:
    return CliRunner().invoke(app, list(options))


@pytest.mark.slow
def test_it_runs_and_writes_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "new" / "gpu.json"
    ways = ("--way", "eager", "--way", "fused")
    sizes = ("--shape", "tiny", "--batch", "1", "--batch", "3", "--width", "8")
    done = run(*SMALL, *ways, *sizes, "--output", str(file))
    assert done.exit_code == 0, done.output
    record = json.loads(file.read_text())
    assert record["roofs"]["bytes_per_second"] > 1e8
    assert record["roofs"]["flops_per_second"] > 1e8
    (shape,) = record["shapes"]
    assert [line["batch"] for line in shape["steps"]] == [1, 3]
    for line in shape["steps"]:
        assert list(line["ways"]) == ["eager", "fused"]
        for row in line["ways"].values():
            assert row["ms"] > 0
            assert row["tokens_per_second"] > 0
            assert row["drawn_tokens_per_second"] > 0
            assert row["ran_eager"] is None
        assert line["floor"]["ms"] > 0
        assert set(line["statistics_ms"]) == {"pytorch", "drawn, pytorch"}
        parts = {"norm, operations", "rotation, operations", "gated, operations"}
        assert set(line["between_ms"]) == parts
    assert "over floor" in done.output
    assert shape["goals"] == gpu_table.reached(shape["steps"])
    assert len(shape["goals"]) == 6
    assert "tokens/s, batch 3 over 1" in done.output


def line(batch: int, weights_ms: float, **ways: Any) -> dict[str, Any]:
    return {"batch": batch, "floor": {"weights_ms": weights_ms}, "ways": ways}


def test_goals_worked_by_hand() -> None:
    def row(ms: float, plain: float, drawn: float) -> dict[str, float]:
        return {"ms": ms, "tokens_per_second": plain, "drawn_tokens_per_second": drawn}

    full = {"out_of_memory": "CUDA out of memory"}
    few = line(1, 4.0, eager=row(6, 100, 80), captured=row(5, 120, 110), fused=row(5, 1, 1))
    many = line(32, 4.0, eager=row(9, 1100, 1000), captured=row(9, 1440, 1400), fused=full)
    found = gpu_table.reached([few, line(2, 4.0), many])
    assert [(goal["way"], goal["met"]) for goal in found] == [
        *[("eager", False)] * 3,
        *[("captured", True)] * 3,
    ]
    ratios = [goal["ratio"] for goal in found]
    assert ratios == pytest.approx([1.5, 11, 1.25, 1.25, 12, 120 / 110])
    assert found[1]["what"] == "tokens/s, batch 32 over 1"


def test_the_floor_is_of_the_weights_or_of_the_products() -> None:
    model = random_model("tiny", torch.float32)
    plan = gpu.Plan(48, 8, (1,), 1, ("eager",)).step(model, 2)
    weights = sum(weight.numel() for weight in model.network.parameters())
    weights -= model.network.embedding.weight.numel()
    keys = 2 * 48 * 2 * 6 * 128
    assert pass_bytes(model, plan) == 4 * (weights + keys)
    slow_memory, slow_products = Roofs(1e9, 1e15), Roofs(1e15, 1e9)
    assert slow_memory.floor(model, plan)["bound"] == "bytes"
    read = slow_memory.floor(model, plan)["weights_ms"]
    assert read == pytest.approx(4 * weights / 1e6)
    floor = slow_products.floor(model, plan)
    assert floor["bound"] == "flops"
    assert floor["ms"] == pytest.approx(model.cost.flops(plan.shape) / 1e6)


def test_a_step_is_of_the_last_block_of_each_row() -> None:
    model = random_model("tiny", torch.float32)
    plan = gpu.Plan(48, 8, (1,), 1, ("eager",)).step(model, 2)
    assert plan.positions.tolist() == [list(range(40, 48))] * 2
    assert plan.stored is not None
    assert torch.equal(plan.stored, plan.positions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "48", *SMALL], "--width 48 must be from 1 to 47"),
        (["--way", "quick", *SMALL], "--way quick: known are eager, compiled"),
    ],
)
def test_wrong_options(options: list[str], message: str) -> None:
    done = run(*options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run("--shape", "tiny")
    assert done.exit_code == 2
    assert "no GPU is here" in done.output


def test_a_file_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    done = run(*SMALL, "--shape", "tiny", "--output", str(tmp_path))
    assert isinstance(done.exception, OSError)
