"""The command line as a user meets it: output, JSON, wrong flags, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dllm.cli.main import main

QUESTION = "tom has 53 pens. tom loses 3. how many pens does tom have?"


def dllm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dllm", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env=environment
    )


Inside = Callable[..., tuple[int, str]]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Runs a command in this process, which saves the imports; returns exit code and stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["dllm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_generate_prints_the_answer_and_its_cost() -> None:
    done = dllm("generate", QUESTION, "--scheduler", "fixed_quota")
    assert done.returncode == 0, done.stderr
    assert "####" in done.stdout
    assert "tokens per forward" in done.stderr
    watched = dllm("generate", QUESTION, "--watch")
    assert watched.returncode == 0, watched.stderr
    assert "####" in watched.stdout


def test_generate_as_json() -> None:
    out = json_of(dllm("generate", QUESTION, "-", "--json", "-c", "dual", stdin="copy: tom, ann."))
    assert len(out["texts"]) == 2
    assert out["metrics"]["forwards"]["refresh"] >= 1
    assert len(out["trace"]["commit_step"]) == 2


def test_chat_answers_line_by_line() -> None:
    done = dllm("chat", "--json", stdin=f"{QUESTION}\n")
    assert "####" in json_of(done)["reply"]


def test_methods_lists_what_exists() -> None:
    listed = json_of(dllm("methods", "--json"))
    names = {(method["kind"], method["name"]) for method in listed}
    assert {("scheduler", "threshold"), ("cache", "dual"), ("task", "arithmetic")} <= names
    assert all(method["text"] and method["source"] for method in listed)
    assert "0.9" in dllm("methods", "threshold").stdout


def test_the_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = [sys.executable, "-m", "dllm", "eval", "-s", "fixed_quota:16", "-c", "dual"]
    done = subprocess.run([*command, "--limit", "2"], capture_output=True, text=True, check=True)
    assert "fixed_quota:16" in done.stdout
    assert "dual" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_eval_writes_rows_and_prints_a_table(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = ["eval", "-s", "threshold:0.9", "-s", "fixed_quota", "--limit", "6"]
    done = dllm(*arguments, "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "forwards" in done.stdout
    assert len(output.read_text().splitlines()) == 12
    again = json_of(dllm(*arguments, "--output", str(output), "--json"))
    assert [row["scheduler"] for row in again["rows"]] == ["threshold", "fixed_quota"]
    assert len(output.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "hi", "--scheduler", "treshold"], "did you mean 'threshold'"),
        (["generate", "hi", "--cache", "duel"], "did you mean 'dual'"),
        (["generate", "hi", "--model", "no-such-folder"], "not an existing folder"),
        (["generate", "hi", "--dtype", "float12"], "float12"),
        (["generate", "hi", "--block-length", "7"], "block lengths that fit"),
        (["generate", "hi", "--set", "colour=red"], "unknown setting colour"),
        (["generate", "hi", "--set", "top_p"], "name=value"),
        (["generate", "hi " * 300], "over the model's limit"),
        (["eval", "--task", "arithmetics"], "did you mean 'arithmetic'"),
        (["eval", "--limit", "0"], "limit=0"),
        (["eval", "--schedulers", "no-such.yaml"], "no such file with a list"),
        (["eval", "-s", "fixed_quota:steps=7", "--limit", "1"], "multiple of the 4 blocks"),
        (["methods", "dua"], "did you mean 'dual'"),
    ],
)
def test_mistakes_are_one_clear_line(inside: Inside, arguments: list[str], message: str) -> None:
    code, stderr = inside(*arguments)
    assert code == 2
    assert message in stderr.replace("\n", " ")
    assert "Traceback" not in stderr


def test_a_mistake_has_no_traceback_in_a_process_of_its_own() -> None:
    done = dllm("generate", "hi", "--scheduler", "treshold")
    assert done.returncode == 2
    assert "error: unknown scheduler" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_flag_is_refused(inside: Inside) -> None:
    code, stderr = inside("generate", "hi", "--schduler", "threshold")
    assert code == 2
    assert "No such option" in stderr


def test_unknown_words_are_warned_about(inside: Inside) -> None:
    code, stderr = inside("generate", "zebra?")
    assert code == 0
    assert "vocabulary lacks words" in stderr


def test_ctrl_c_during_eval_keeps_the_rows_and_the_run_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = ["eval", "-s", "fixed_quota", "--limit", "80", "--batch-size", "2"]
    arguments += ["--output", str(output)]
    # Jobs in the background of a script ignore Ctrl-C, and so would their children.
    listening = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    listening += "runpy.run_module('dllm', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", listening, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    deadline = time.monotonic() + 90
    while not (output.exists() and output.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    kept = len(output.read_text().splitlines())
    assert process.returncode == 130, stderr
    assert b"goes on" in stderr
    assert 2 <= kept < 80
    summary = json_of(dllm(*arguments, "--json"))["rows"][0]
    assert summary["problems"] == 80
    assert len(output.read_text().splitlines()) == 80
