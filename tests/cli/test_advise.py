"""`dllm advise`: what it prints, in JSON and on a narrow terminal, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dllm.advice import CACHES, FORMULAS, Network, Workload, assumed
from dllm.cli import advise as cli
from dllm.cli.main import app
from dllm.models.loading.folder import EMBEDDED


def run(*given: str) -> Any:
    return CliRunner().invoke(app, ["advise", *given])


def test_json_holds_numbers_and_formulas() -> None:
    done = run("tiny", "--json", "--batch", "2", "--bandwidth", "10", "--rate", "50")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["figures"]["source"] == "given"
    assert record["balance"] == 5
    assert set(record["parts"]) == set(record["formulas"]) == set(FORMULAS)
    assert record["bound"] in record["parts"]
    assert {one["cache"] for one in record["caches"]} == set(CACHES) - {"block_causal"}
    assert record["step"]["num_rows"] == record["workload"]["batch"] == 2
    assert record["work"]["layer_flops"] > 0


def test_every_line_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = run("tiny")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    for word in ("weights", "products", "dual", "canvases", "autoregressive", "assumed"):
        assert word in done.stdout


def test_a_measured_machine_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(bench: Any, workload: Workload) -> Any:
        asked.append((bench.network, workload.num_columns))
        return assumed("cpu", 3.0, 12.0)

    monkeypatch.setattr(cli, "measure", measured)
    done = run("tiny", "--measure", "--json", "--prompt-length", "32", "--answer-length", "32")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["balance"] == 4
    [(network, columns)] = asked
    assert isinstance(network, Network)
    assert columns == 64


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--measure", "--rate", "5"], "one or the other"),
        (["--prompt-length", "100000"], "prompt_length=100000"),
        (["--block-length", "0"], "block_length=0"),
        (["--answer-length", "40"], "answer_length=40 is not a multiple of block_length=32"),
    ],
)
def test_what_does_not_go_together_is_refused(given: list[str], text: str) -> None:
    done = run("tiny", *given)
    assert done.exit_code != 0
    assert text in str(done.exception)


def test_no_weight_is_read(tmp_path: Path) -> None:
    for file in EMBEDDED.iterdir():
        if file.suffix != ".safetensors" and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    done = run(str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
