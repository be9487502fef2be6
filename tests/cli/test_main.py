"""The command line as a user meets it: output, JSON, wrong flags, Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm.cli.main import message
from dllm.eval.run import execute
from tests.support.commands import Done, Inside
from tests.support.processes import start_dllm, wait_until

QUESTION = "tom has 53 pens. tom loses 3. how many pens does tom have?"


def test_generate_prints_the_answer_and_its_cost(inside: Inside) -> None:
    done = inside("generate", QUESTION, "--scheduler", "fixed_quota")
    assert done.returncode == 0, done.stderr
    assert "####" in done.stdout
    assert "tokens per forward" in done.stderr
    watched = inside("generate", QUESTION, "--watch")
    assert watched.returncode == 0, watched.stderr
    assert "####" in watched.stdout


def test_generate_as_json(inside: Inside) -> None:
    out = inside("generate", QUESTION, "-", "--json", "-c", "dual", stdin="copy: tom, ann.").json
    assert len(out["texts"]) == 2
    assert out["metrics"]["forwards"]["refresh"] >= 1
    assert len(out["trace"]["commit_step"]) == 2


def test_chat_answers_line_by_line(inside: Inside) -> None:
    done = inside("chat", "--json", stdin=f"{QUESTION}\n")
    assert "####" in done.json["reply"]


def test_methods_lists_what_exists(inside: Inside) -> None:
    listed = inside("methods", "--json").json
    names = {(method["kind"], method["name"]) for method in listed}
    assert {("scheduler", "threshold"), ("cache", "dual"), ("task", "arithmetic")} <= names
    assert all(method["text"] and method["source"] for method in listed)
    assert "0.9" in inside("methods", "threshold").stdout


def test_the_table_fits_a_narrow_terminal(inside: Inside) -> None:
    arguments = ("eval", "-s", "fixed_quota:16", "-c", "dual", "--limit", "2")
    done = inside(*arguments, columns=80)
    assert "fixed_quota:16" in done.stdout
    assert "dual" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_eval_writes_rows_and_prints_a_table(inside: Inside, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = ["eval", "-s", "threshold:0.9", "-s", "fixed_quota:16", "--limit", "3"]
    done = inside(*arguments, "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert "forwards" in done.stdout
    assert len(output.read_text().splitlines()) == 6
    again = inside(*arguments, "--output", str(output), "--json").json
    assert [row["scheduler"] for row in again["rows"]] == ["threshold", "fixed_quota:16"]
    assert len(output.read_text().splitlines()) == 6


@pytest.mark.few(25)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "hi", "--scheduler", "treshold"], "did you mean 'threshold'"),
        (["generate", "hi", "--cache", "duel"], "did you mean 'dual'"),
        (["generate", "hi", "--model", "no-such-folder"], "not an existing folder"),
        (["generate", "hi", "--dtype", "float12"], "float12"),
        (["generate", "hi", "--set", "colour=red"], "unknown setting colour"),
        (["generate", "hi", "--set", "top_p"], "name=value"),
        (["generate", "hi " * 300], "over the model's limit"),
        (["eval", "--task", "arithmetics"], "did you mean 'arithmetic'"),
        (["eval", "--limit", "0"], "limit=0"),
        (["eval", "--schedulers", "no-such.yaml"], "no such file with a list"),
        (["eval", "-s", "fixed_quota:steps=7", "--limit", "1"], "multiple of the 4 blocks"),
        (["methods", "dua"], "did you mean 'dual'"),
        (["generate", "hi", "--set", "top_p=[1"], "'[1' is not a YAML value"),
        (["generate", "hi", "-n", "16", "--set", "max_new_tokens=8"], "is given twice"),
        (["generate", "hi", "-n", "16", "--set", "gen_length=8"], "max_new_tokens a second time"),
        (["generate", "hi", "--set", "seed=one"], "seed='one' must be a whole number"),
        (["generate", "hi", "--set", "temperature=[1]"], "temperature=[1] must be 0 or more"),
        (["generate", "hi", "--set", "forbid_eos=maybe"], "forbid_eos='maybe' must be true or"),
        (["generate", "hi", "--set", "forbidden_token_ids=x"], "must be a list of token ids"),
        (["generate", "hi", "--set", "fixed=3"], "fixed=3 must be a mapping"),
        (
            ["generate", "hi", "--speed", "quick"],
            "'quick': there are 9, none like it; known: fused, packed",
        ),
        (["generate", "hi", "--speed", "captured"], "'tiny' is on cpu"),
        (["generate", "hi", "--draft-adapter", "x"], "draft_adapter='x' is for models that draft"),
        (["eval", "--draft-adapter", "x"], "draft_adapter='x' is for models that draft"),
        (["verify", "-v", "linear", "--draft-adapter", "x"], "draft_adapter='x' is for models"),
        (["serve", "--port", "0", "--draft-adapter", "x"], "draft_adapter='x' is for models that"),
        (["generate", "hi", "--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["generate", "hi", "--device", "gpu"], "device='gpu' is not known to torch: cpu, cuda"),
        (["generate", "hi", "--device", "cuda:99"], "device='cuda:99': torch finds"),
        (["generate", ""], "prompt 1='' is empty: give a text"),
        (["generate", "hi", "  "], "prompt 2='  ' is empty: give a text"),
        (["generate", "-"], "stdin is empty: give a text"),
        (["chat", "--scheduler", "treshold"], "did you mean 'threshold'"),
        (["chat", "--cache", "block_causal"], "needs a block-causal model"),
        (["eval", "--samples", "0"], "samples=0 must be at least 1"),
        (["eval", "--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["eval", "--trace"], "name it with --output"),
        (["eval", "--task", "parallel_bench:shufle"], "did you mean 'shuffle'"),
        (["eval", "--task", "parallel_bench:nams=3"], "the only option is names"),
        (["verify", "--verifier", "sdd"], "did you mean 'ssd'"),
        (["verify", "--limit", "0"], "limit=0 must be at least 1"),
        (["cache-error", "-c", "duel"], "did you mean 'dual'"),
        (["train-filter", "--task", "arithmetic", "-o", "x.pt"], "must end in .safetensors"),
    ],
)
def test_mistakes_are_one_clear_line(inside: Inside, arguments: list[str], message: str) -> None:
    done = inside(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mistake_has_no_traceback_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "dllm", "generate", "hi", "--scheduler", "treshold"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: unknown scheduler" in done.stderr
    assert "Traceback" not in done.stderr


NOT_OURS: dict[str, str | bytes] = {
    "empty": "",
    "notes.txt": "my notes\n",
    "notes.md": "# my notes\n",
    "notes.html": "<!doctype html><p>my notes\n",
    "notes.csv": "date,note\n",
    "notes.jsonl": '{"note": 1}\n',
    "notes.safetensors": "weights of years",
    "broken.yaml": "about: [x\n  b: {",
    "latin.txt": b"caf\xe9",
    "folder.png/file": "",
    "folder/file": "",
}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files that hold something else, in the folder that commands run in; none may change."""
    held = {name: c if isinstance(c, bytes) else c.encode() for name, c in NOT_OURS.items()}
    for name, content in held.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    yield
    files = {str(p.relative_to(tmp_path)): p for p in tmp_path.rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in files.items()} == held


EVAL = ["eval", "--limit", "1", "-s", "threshold"]
ERRORS = ["cache-error", "--limit", "1", "-c", "dual"]
TRAIN = ["train-filter", "--task", "arithmetic", "--count", "12", "--epochs", "2"]
IN_A_FILE = "notes.txt is a file, where a folder is needed"


@pytest.mark.few(4)
@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "nope.jsonl"], "there is no file nope.jsonl: `dllm generate ... --trace FILE`"),
        (["trace", "empty"], "empty is empty: `dllm generate ... --trace FILE`"),
        (["trace", "notes.txt"], "notes.txt line 1 is no JSON"),
        (["trace", "latin.txt"], "latin.txt is no text file"),
        (["trace", "notes.jsonl"], "line 1 is neither a trace nor a result"),
        (["trace", "folder"], "folder is a folder: name one of its files"),
        (["trace", "notes.jsonl", "--html", "notes.html"], "notes.html exists and holds something"),
        (["ablate", "nope"], "no configuration 'nope'"),
        (["ablate", "nope.yaml"], "`dllm ablate --list` lists those"),
        (["ablate", "folder"], "folder is a folder: name a YAML file, or one of"),
        (["ablate", "broken.yaml"], "broken.yaml is not YAML"),
        (["ablate", "empty"], "must be a mapping of about"),
        (["ablate", "quickstart", "--output", "notes.txt"], "--output notes.txt must be a folder"),
        (["ablate", "quickstart", "--output", "notes.txt/x"], IN_A_FILE),
        (["compare", "nope.jsonl"], "there is no results file nope.jsonl"),
        (["compare", "empty"], "empty holds no results yet"),
        (["compare", "folder"], "folder is a folder: name a results file"),
        (["compare", "notes.jsonl"], "not a result of `dllm eval` (it has other fields): choose"),
        (["compare", "latin.txt"], "latin.txt is not a file of results"),
        ([*EVAL, "--output", "notes.txt"], "notes.txt line 1 is not a result of `dllm eval`"),
        ([*EVAL, "--output", "notes.jsonl"], "notes.jsonl line 1 is not a result of `dllm eval`"),
        ([*EVAL, "--output", "folder"], "--output folder is a folder: name a file"),
        ([*EVAL, "--output", "notes.txt/rows.jsonl"], IN_A_FILE),
        ([*EVAL, "--plot", "folder.png"], "--plot folder.png is a folder: name a file"),
        ([*EVAL, "--plot", "notes.txt/x.png"], IN_A_FILE),
        ([*EVAL, "--plot", "x.png", "--output", "notes.txt/x"], IN_A_FILE),
        ([*EVAL, "--task", "gsm8k", "--data", "folder"], "is a folder: name a file of JSON lines"),
        (["generate", "hi", "--trace", "notes.txt"], "notes.txt exists and holds no traces"),
        (["generate", "hi", "--trace", "folder"], "--trace folder is a folder: name a file"),
        (["generate", "hi", "--trace", "notes.txt/x"], IN_A_FILE),
        (["methods", "--markdown", "--into", "nope.md"], "--into nope.md: no such file: it must"),
        (["methods", "--markdown", "--into", "folder"], "--into folder: no such file: it must"),
        (["methods", "--markdown", "--into", "notes.md"], "notes.md has no line"),
        (["methods", "--markdown", "--into", "latin.txt"], "latin.txt is not a text file"),
        ([*ERRORS, "--output", "notes.md"], "notes.md exists and holds something else"),
        ([*ERRORS, "--output", "notes.csv"], "notes.csv exists and holds something else"),
        ([*ERRORS, "--passes", "notes.csv"], "notes.csv exists and holds something else"),
        ([*ERRORS, "--output", "notes.txt/x.csv"], IN_A_FILE),
        ([*ERRORS, "--prompts", "latin.txt"], "latin.txt is no text file"),
        ([*TRAIN, "--output", "notes.safetensors"], "exists and holds something else"),
        ([*TRAIN, "--output", "notes.txt/x.safetensors"], IN_A_FILE),
    ],
)
def test_wrong_files_are_named_and_kept(inside: Inside, arguments: list[str], message: str) -> None:
    done = inside(*arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr.replace("\n", " ")
    assert "[Errno" not in done.stderr


@pytest.mark.slow
def test_what_a_command_wrote_it_writes_again(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["-n", "16", "-b", "16"]
    for _ in range(2):
        for command in (
            ["generate", QUESTION, "--trace", "new/rows.jsonl", *short],
            ["trace", "new/rows.jsonl", "--html", "page.html"],
            [*ERRORS, "--output", "errors.csv", "--passes", "passes.csv", *short],
            [*ERRORS, "--output", "errors.md", *short],
            [*TRAIN, "--output", "f.safetensors", *short],
        ):
            assert inside(*command).returncode == 0, command


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x", "a/b"), "a/b: its disk is full"),
        (OSError(errno.EACCES, "x", "a/b"), "a/b: this user may not read or write it"),
        (OSError(errno.EROFS, "x", Path("a/b")), "a/b: its disk is read-only"),
        (OSError("our own words"), "our own words"),
        (ValueError("our own words"), "our own words"),
    ],
)
def test_errors_of_the_system_are_in_words(error: Exception, words: str) -> None:
    assert message(error).startswith(words)


def test_a_folder_that_this_user_may_not_write_to(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    done = inside(*EVAL, "--output", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 2
    assert "this user may not write there: choose another path" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_verify_shows_by_default_that_forwards_are_saved(inside: Inside) -> None:
    found = inside("verify", "--limit", "2", "--json").json
    saved = found["base"]["forwards"] - found["verified"]["forwards"]
    assert saved > found["base"]["forwards"] / 4
    assert found["same_rows"] == 2
    done = inside("verify", "--limit", "2", columns=60)
    assert f"saved: {saved} of {found['base']['forwards']} forwards (" in done.stdout
    other = inside("verify", "--limit", "2", "--set", "scheduler=threshold", "--json").json
    assert other["base"]["forwards"] < found["base"]["forwards"]


def test_wrong_flag_is_refused(inside: Inside) -> None:
    done = inside("generate", "hi", "--schduler", "threshold")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_unknown_words_are_warned_about(inside: Inside) -> None:
    done = inside("generate", "zebra?")
    assert done.returncode == 0
    assert "vocabulary lacks words" in done.stderr


EVERYTHING = ["eval", "-s", "fixed_quota", "--limit", "12", "--batch-size", "2"]


@pytest.mark.slow
def test_an_interrupted_eval_keeps_the_rows_and_goes_on(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the next test, without a process of its own: Ctrl-C comes after the second batch."""
    output, original = tmp_path / "rows.jsonl", execute.results

    def stopped(*given: Any) -> Iterator[Any]:
        for number, results in enumerate(original(*given)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield results

    arguments = [*EVERYTHING, "-n", "16", "-b", "16", "--output", str(output)]
    with monkeypatch.context() as patched:
        patched.setattr(execute, "results", stopped)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            done = inside(*arguments)
        finally:
            signal.signal(signal.SIGINT, before)
    check_goes_on(inside, arguments, done, output)


@pytest.mark.slow
def test_ctrl_c_during_eval_keeps_the_rows_and_the_run_goes_on(
    inside: Inside, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = [*EVERYTHING, "--output", str(output)]
    process = start_dllm(*arguments)
    wait_until(lambda: output.exists() and output.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    check_goes_on(inside, arguments, Done(process.returncode, stdout, stderr), output)


def check_goes_on(inside: Inside, arguments: list[str], done: Done, output: Path) -> None:
    kept = len(output.read_text().splitlines())
    assert done.returncode == 130, done.stderr
    assert "goes on" in done.stderr
    assert 2 <= kept < 12
    summary = inside(*arguments, "--json").json["rows"][0]
    assert summary["problems"] == 12
    assert len(output.read_text().splitlines()) == 12
