"""Benchmarks run and write what they say; figures are not tested, machines are too noisy."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from benchmarks.machine import machine, ratio, rounds
from benchmarks.shapes import SHAPES, random_model
from benchmarks.widened import networks_of
from dllm.models.speed.widened import WidenedLinear


def run(name: str, *arguments: str) -> Result:
    """Runs a benchmark in this process."""
    app = typer.Typer()
    app.command()(importlib.import_module(f"benchmarks.{name}").main)
    return CliRunner().invoke(app, arguments)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Gives back the threads that a benchmark sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_a_draft_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cost.json"
    arguments = ("--shape", "tiny", "--repeats", "1", "--output", str(file))
    monkeypatch.setattr(sys, "argv", ["break_even.py", *arguments])
    assert run("break_even", *arguments).exit_code == 0
    record = json.loads(file.read_text())
    assert record["cost"]["batch"]["1"] == 1
    assert set(record["cost"]["tree"]) == {"1", "2", "3", "5", "9"}
    assert record["machine"]["command"].endswith("--shape tiny --repeats 1 --output " + str(file))


def test_compiling_constraints(tmp_path: Path) -> None:
    file = tmp_path / "constraints.json"
    arguments = ("--tokens", "2000", "--repeats", "1", "--output", str(file))
    assert run("constraints", *arguments).exit_code == 0
    record = json.loads(file.read_text())
    assert record["vocabulary"]["tokens"] > 1900
    schema = record["languages"][0]
    assert schema["language"] == "schema of 10 fields"
    assert schema["cold_ms"] > schema["automaton_ms"] > 0
    assert schema["mib"] > 0 < schema["classes"]


def test_lengths_of_gaps(tmp_path: Path) -> None:
    file = tmp_path / "lengths.json"
    assert run("hole_lengths", "--problems", "2", "--output", str(file)).exit_code == 0
    for task in json.loads(file.read_text())["tasks"]:
        assert 0 < task["gaps"] <= 2
        assert all(task.get(name, 0) <= task["gaps"] for name in ("score", "commit", "first"))


def test_the_cost_curve(tmp_path: Path) -> None:
    file, plot = tmp_path / "costs.json", tmp_path / "costs.png"
    lengths = ("--batches", "1,2", "--prompts", "16,32", "--answers", "64,96", "--repeats", "1")
    arguments = ("--shape", "tiny", *lengths, "--output", str(file), "--plot", str(plot))
    assert run("cost_curve", *arguments).exit_code == 0
    costs = json.loads(file.read_text())["costs"]
    assert [cost["varied"] for cost in costs] == ["batch"] * 2 + ["prompt"] * 2 + ["new_tokens"] * 2
    assert costs[1]["store_mib"] > costs[0]["store_mib"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_steps_beside_floor_and_textbook_loop(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    sizes = ("--prompt", "16", "--new-tokens", "16", "--block", "8", "--repeats", "1")
    arguments = ("--shape", "tiny", *sizes, "--no-overhead", "--output", str(file))
    assert run("step", *arguments).exit_code == 0
    record = json.loads(file.read_text())
    assert record["step"]["steps"] == 14
    assert record["generation"]["same_tokens_dual"]
    assert record["generation"]["same_tokens_none"]


@pytest.mark.slow
def test_generations(tmp_path: Path) -> None:
    file = tmp_path / "generations.json"
    lengths = ("--batches", "1,2", "--prompts", "16", "--answers", "32,64")
    arguments = ("--shape", "tiny", *lengths, "--output", str(file))
    assert run("generation", *arguments).exit_code == 0
    rows = json.loads(file.read_text())["generations"]
    assert [(row["batch"], row["new_tokens"], row["forwards"]) for row in rows] == [
        (1, 32, 32),
        (2, 32, 32),
        (1, 32, 32),
        (1, 32, 32),
        (1, 64, 64),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_runs_all_of_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--folder", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert {"generation_tiny.json", "cost_curve_tiny.png", "memory_tiny.json"} <= written
    memory = json.loads((tmp_path / "new" / "memory_tiny.json").read_text())["cases"]
    assert all(row["generation_mib"] >= row["store_mib"] for row in memory)
    step = json.loads((tmp_path / "new" / "step_tiny_float32_fused+packed.json").read_text())
    assert {row["kind"] for row in step["kinds"]} == {"refresh", "step", "commit"}
    assert all(min(row["ms"], row["products_ms"], row["bytes_ms"]) > 0 for row in step["kinds"])


def test_records_of_another_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text("{}")
    for wrong, said in (
        (("--folder", str(tmp_path)), "holds something"),
        (("--shape", "x"), "tiny, 50m"),
    ):
        done = run("__main__", *wrong)
        assert done.exit_code == 2
        # In a frame, whose lines break wherever a path ends.
        assert said in " ".join(done.stderr.replace("│", " ").split())
    assert (tmp_path / "step.json").read_text() == "{}"


def test_rounds_do_all_works_in_turn() -> None:
    done: list[int] = []
    taken = rounds([lambda: done.append(0), lambda: done.append(1)], 3, "cpu")
    assert done == [0, 1] * 4
    assert [len(seconds) for seconds in taken] == [3, 3]


def test_ratios_are_of_one_round() -> None:
    assert ratio([2, 20, 30], [1, 10, 10]) == 2


def test_the_machine_is_named() -> None:
    record = machine("cpu")
    assert record["torch"] == torch.__version__
    assert record["device"].endswith("cores")


@pytest.mark.parametrize("name", ["tiny", "50m"])
def test_random_models_tell_columns_apart(name: str) -> None:
    model = random_model(name, torch.float32)
    assert sum(p.numel() for p in model.network.parameters()) > 1e6
    logits = model.network(torch.randint(0, 100, (1, 12)))
    assert logits.argmax(-1).unique().numel() > 3


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=f"known are {', '.join(SHAPES)}"):
        random_model("huge", torch.float32)


def test_widened_products_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.widened.SMALL", SHAPES["tiny"])
    monkeypatch.setattr(sys, "argv", ["widened.py"])
    found = {}
    for mode in ("--rows", "--repeats"):
        file = tmp_path / f"{mode}.json"
        arguments = ("--repeats", "1", "--layers", "1", "--output", str(file))
        done = run("widened", *arguments, *(["--rows"] if mode == "--rows" else []))
        assert done.exit_code == 0, done.output
        found[mode] = json.loads(file.read_text())["rows"]
    assert [row["rows"] for row in found["--rows"]][:3] == [1, 2, 3]
    assert {row["inputs"] for row in found["--rows"]} == {128, 384}
    *passes, memory = found["--repeats"]
    assert [row["pass"] for row in passes] == ["refresh", "step", "short step", "token"]
    for row in passes:  # of one turn
        times = row["bfloat16"] / row["widened"]
        assert row["bfloat16 / widened"] == pytest.approx(times)
        assert row["widened / float32"] > 0
    assert memory["widened / float32"] == memory["bfloat16 / float32"] == 0.5
    refused = run("widened", "--only", "refres")
    assert refused.exit_code == 2
    assert "known are refresh, step" in " ".join(refused.output.replace("│", " ").split())


def test_a_widened_network_shares_its_weights() -> None:
    networks = networks_of(SHAPES["tiny"])
    narrow, widened = networks["bfloat16"].parameters(), networks["widened"].parameters()
    assert all(one is other for one, other in zip(narrow, widened, strict=True))
    kinds = {type(part) for part in networks["bfloat16"].modules()}
    assert WidenedLinear not in kinds


def test_advice_and_what_it_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm.advice.timing.ROUNDS", 1)
    file = tmp_path / "advice.json"
    few = ("--batches", "1", "--prompts", "8", "--tokens", "8", "--repeats", "1")
    done = run("advise", "--shape", "tiny", *few, "--output", str(file))
    assert done.exit_code == 0, done.output
    record = json.loads(file.read_text())
    assert [one["cache"] for one in record["settings"]] == ["none", "prefix", "dual"]
    for one in record["settings"]:
        assert one["ratio"] == pytest.approx(one["predicted"] / one["measured"])
    near = [one for one in record["settings"] if abs(one["ratio"] - 1) <= 0.25]
    assert record["within"] == len(near)
