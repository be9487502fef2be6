"""A peer runs in a process of its own, beside this project, and different tokens are named."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

import dllm
from benchmarks.peers.cases import CASES, Case, Lengths, first_difference, write_checkpoint

LENGTHS = Lengths(prompt=6, block=8, most=8)
MODELLING = """
class LLaDAModelLM:
    @classmethod
    def from_pretrained(cls, folder, torch_dtype):
        return cls()
    def eval(self):
        return self
"""
# Prints too, as peers do: only answers may reach this project.
GENERATE = """
import json, pathlib, torch
ANSWERS = json.loads(pathlib.Path(__file__).with_name("answers.json").read_text())
def generate(model, prompt, steps, gen_length, block_length, mask_id):
    print("steps", steps)
    assert steps == gen_length and not torch.is_grad_enabled()
    return torch.tensor(ANSWERS[str(len(prompt))])
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """What this project decodes in each case of LLaDA's loop, by the number of rows."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint("tiny", folder)
    model, found = dllm.load(folder), {}
    for case in CASES["llada"]:
        sequences = dllm.generate(
            model,
            LENGTHS.prompts(case, model.spec.vocab_size),
            scheduler="fixed_quota",
            cache="none",
            max_new_tokens=8,
            block_length=8,
            at_eos="ignore",
        ).sequences
        found[str(case.batch)] = [list(row) for row in sequences]
    return found


def checkout(folder: Path, answers: dict[str, list[list[int]]], generate: str = GENERATE) -> Path:
    """Writes what the runner looks for in LLaDA's repository, and a network beside it."""
    (folder / "generate.py").write_text(generate)
    (folder / "modeling_llada.py").write_text(MODELLING)
    (folder / "answers.json").write_text(json.dumps(answers))
    return folder


def peers(*arguments: str) -> Result:
    before = torch.get_num_threads()
    app = typer.Typer()
    app.command()(importlib.import_module("benchmarks.peers.__main__").main)
    sizes = ("--shape", "tiny", "--prompt", "6", "--most", "8", "--block", "8", "--repeats", "2")
    try:
        return CliRunner().invoke(app, [*arguments, *sizes])
    finally:
        torch.set_num_threads(before)


def test_both_are_timed_and_tokens_are_equal(
    tmp_path: Path, answers: dict[str, list[list[int]]]
) -> None:
    file = tmp_path / "record.json"
    folder = checkout(tmp_path, answers)
    done = peers(str(folder), "--peer", "llada", "--output", str(file))
    assert done.exit_code == 0, done.output
    record = json.loads(file.read_text())
    assert record["beside"]["peer"] == "llada"
    assert record["beside"]["python"] == sys.version.split()[0]
    assert record["taken"].startswith("speed='auto' takes plain")
    assert [row["different"] for row in record["cases"]] == ["", "", ""]
    for row in record["cases"]:
        assert row["least"] <= row["ratio"] <= row["most"]
        assert row["forwards"] == 8
    assert record["cases"][2]["reached"] == (record["cases"][2]["ratio"] >= 1.35)


def test_a_whole_name_asks_for_that_case_alone(
    tmp_path: Path, answers: dict[str, list[list[int]]]
) -> None:
    file, folder = tmp_path / "record.json", checkout(tmp_path, answers)
    for only, count in (("one token a step, none", 1), ("one token a step", 3)):
        done = peers(str(folder), "--peer", "llada", "--only", only, "--output", str(file))
        assert done.exit_code == 0, done.output
        assert len(json.loads(file.read_text())["cases"]) == count


def test_another_token_is_named(tmp_path: Path, answers: dict[str, list[list[int]]]) -> None:
    wrong = json.loads(json.dumps(answers))
    wrong["16"][3][9] += 1
    folder = checkout(tmp_path, wrong)
    done = peers(str(folder), "--peer", "llada", "--only", "batch 16")
    assert done.exit_code == 1
    ours = answers["16"][3][9]
    assert f"row 3, column 9: {ours} of ours, {ours + 1} of the peer" in done.output


def test_what_fails_in_the_peer_is_told(
    tmp_path: Path, answers: dict[str, list[list[int]]]
) -> None:
    folder = checkout(tmp_path, answers, GENERATE.replace("print(", "raise OSError("))
    done = peers(str(folder), "--peer", "llada")
    assert isinstance(done.exception, RuntimeError)
    assert "OSError" in str(done.exception)
    ended = checkout(tmp_path, answers, "raise SystemExit(3)")
    done = peers(str(ended), "--peer", "llada")
    assert "llada ended with code 3" in str(done.exception)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for arguments, said in (
        (("--peer", "other"), "known are fast_dllm, llada, d2cache"),
        (("--peer", "fast_dllm"), "llada/generate.py is missing"),
        (("--peer", "d2cache"), "src/generation/vanilla.py is missing"),
        (("--peer", "d2cache", "--only", "batch 7"), "one token a step, dual, batch 4"),
    ):
        done = peers(str(tmp_path), *arguments)
        assert done.exit_code == 2
        assert "".join(said.split()) in "".join(done.output.replace("│", "").split())
    (tmp_path / "generate.py").write_text(GENERATE)
    done = peers(str(tmp_path), "--peer", "llada")
    assert "--modelling" in done.output


def test_the_first_difference() -> None:
    assert first_difference([[1, 2]], [[1, 2]]) == ""
    assert first_difference([[1, 2], [3, 4]], [[1, 2], [3, 5]]).startswith("row 1, column 1: 4 of")
    assert "2 columns of ours, 1" in first_difference([[1, 2]], [[1]])
    assert "1 rows of ours, 2" in first_difference([[1]], [[1], [2]])


def test_cases_name_what_both_do() -> None:
    case = Case("dual", threshold=0.9, batch=4)
    assert case.name == "threshold 0.9, dual, batch 4"
    assert case.scheduler == "threshold:0.9"
    assert LENGTHS.of(replace(case, new_tokens=64)).new_tokens == 8
    assert LENGTHS.of(replace(case, new_tokens=4)).new_tokens == 4
    names = [case.name for cases in CASES.values() for case in cases]
    assert len(names) == 10
