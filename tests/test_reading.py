"""YAML and JSON that people write: what is there twice, or stands for too much, is refused."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dllm import reading
from dllm.cli.main import app
from dllm.eval.run.record import beside, read_records
from dllm.eval.run.results import Result, read_results
from dllm.reading import LARGEST_YAML, parse_json, parse_yaml, read_yaml
from dllm.trace.file import read_held
from tests.support import ROOT

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands twice"),
        ("a: {b: 1, b: 2}", "'b' stands twice"),
        ("- {1: 2, 1: 2}", "'1' stands twice"),
        ("- {1: 2, 0x1: 2}", "'0x1' stands twice"),
        ("a: &a {b: 1}\nc: {<<: *a, <<: *a}", "'<<' stands twice"),
        (BOMB, "aliases written out"),
        ("a: {<<: 3}", "line 1: << takes a mapping"),
        ("&a [*a]", "inside what it is an alias of"),
        ("[" * 2000, "nests values deeper than 50"),
        ("[" * 100_000 + "]" * 100_000, "nests values deeper than 50"),
        ("a: 2024-13-45", "month"),
        ("a: " + "9" * 5000, "digits"),
        ("? [1, 2]\n: 3", "unhashable"),
        ("a: [", "expected"),
        ("a\0b", "unacceptable character"),
        ("#" * (LARGEST_YAML + 1), "more than 1048576 bytes"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_yaml(text)
    assert len(str(refused.value)) <= 300
    assert "\n" not in str(refused.value)


def test_yaml_that_is_read() -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\nlist: [*base, *base]"
    base = {"a": 1, "b": 2}
    assert parse_yaml(text) == {"base": base, "more": {"a": 1, "b": 3}, "list": [base, base]}
    assert parse_yaml("") is None
    # A mapping that merges another and is merged by a third, deeper than that.
    text = "a: &a {x: 1}\nb: [[&b {<<: *a, x: 2}]]\nc: {<<: *b}"
    assert parse_yaml(text) == {"a": {"x": 1}, "b": [[{"x": 2}]], "c": {"x": 2}}
    # Of several the first wins, and its own keys before all.
    text = "[&a {many: 1, more: 1}, &b {many: 2, less: 2}, {<<: [*a, *b], less: 3}]"
    assert parse_yaml(text)[2] == {"many": 1, "more": 1, "less": 3}


@pytest.mark.parametrize(
    "content", [b"\x00\xff\xfe" * 1000, b"x" * (LARGEST_YAML + 1), b"- " + b"y" * 5000 + b": : :"]
)
def test_a_wrong_file_is_not_printed_whole(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.yaml is not YAML") as refused:
        read_yaml(file)
    assert len(str(refused.value)) < 300 + len(str(file))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"' + "k" * 9000 + '": 1, "' + "k" * 9000 + '": 1}', r"kkk \.\.\. stands twice"),
        ("1e999", "'1e999' is too large|1e999 is too large"),
        ('{"a": [-1e999]}', "-1e999 is too large"),
        ("9" * 9000, "digits"),
    ],
)
def test_json_that_is_refused_in_few_words(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_json(text, "here")
    assert len(str(refused.value)) < 400


def test_json_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LARGEST_JSON", 10)
    assert parse_json("[1, 2, 3 ]", "here") == [1, 2, 3]
    with pytest.raises(ValueError, match="here is longer than 10 characters"):
        parse_json("[1, 2, 3, 4]", "here")


def test_numbers_can_be_kept_as_they_are_written() -> None:
    found = parse_json('{"a": 1.10, "b": 1e999, "c": 3}', "here", number=str)
    assert found == {"a": "1.10", "b": "1e999", "c": "3"}


WORDS = "[" + "word, " * 20_000 + "]"


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "text",
    [
        "about: x\nabout: y\nsettings: [{name: a}]",
        "about: x\nsettings: [{name: a, threshold: 0.5, threshold: 0.9}]",
        BOMB,
        WORDS,
        "about: x\nsettings: {" + ", ".join(f"k{n}: word" for n in range(9000)) + "}",
        f"about: x\nlimit: {WORDS}\nsettings: [{{name: a}}]",
        f"about: x\nsettings: [{{name: a, task: {WORDS}}}]",
        f"about: x\ncommon: {WORDS}\nsettings: [{{name: a}}]",
        f"about: x\ngrid: {{scheduler: [threshold]}}\nexclude: [{{scheduler: {WORDS}}}]",
    ],
)
@pytest.mark.parametrize("command", [["ablate"], ["eval", "--schedulers"]])
def test_commands_refuse_a_wrong_file_in_few_words(
    tmp_path: Path, text: str, command: list[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    done = CliRunner().invoke(app, [*command, str(file)])
    assert isinstance(done.exception, ValueError), done.exception
    assert len(str(done.exception)) < 700
    assert "mine.yaml" in str(done.exception)


@pytest.mark.parametrize(
    "given", [["--set", "fixed={1: 2, 1: 3}"], ["--device-map", "{1: cpu, 1: cpu}"]]
)
def test_options_as_text_are_read_by_it(given: list[str]) -> None:
    done = CliRunner().invoke(app, ["eval", "--limit", "1", *given])
    assert isinstance(done.exception, ValueError), given
    assert "'1' stands twice" in str(done.exception)


RESULT: dict[str, Any] = {
    "run": "abc",
    "id": "a-0",
    "prompt": "p",
    "text": "t",
    "answer": "t",
    "correct": True,
    "prompt_tokens": 1,
    "valid_tokens": 2,
    "raw_tokens": 2,
    "forwards": 3,
    "row_forwards": 3,
    "tokens_fed": 4,
    "seconds": 0.5,
    "finish_reason": "stop",
    "settings": {},
}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ('"correct": true, "correct": false', "the key 'correct' stands twice"),
        ('"correct": "yes"', "correct='yes' must be true or false or none"),
        ('"correct": true, "seconds": NaN', "seconds=nan must be a number"),
        ('"correct": true, "forwards": -3', "forwards=-3 must be at least 0"),
        ('"correct": true, "forwards": 2.5', "forwards=2.5 must be a whole number"),
        ('"correct": true, "flops": 1e999', "flops=inf must be a number"),
    ],
)
def test_a_figure_that_is_none_is_no_result(tmp_path: Path, changed: str, why: str) -> None:
    """Not even in a last line without its end, which is left out only where it is cut."""
    file = tmp_path / "rows.jsonl"
    later = json.loads("{" + changed + "}")
    kept = {key: value for key, value in RESULT.items() if key == "run" or key not in later}
    file.write_text(json.dumps(kept)[:-1] + f", {changed}}}")
    with pytest.raises(ValueError, match=why):
        read_results(file)


def test_results_of_before_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    traced = {**RESULT, "id": "a-1", "trace": {"confidence": [float("nan")]}}
    file.write_text(json.dumps(RESULT) + "\n" + json.dumps(traced) + "\n" + json.dumps(RESULT)[:50])
    first, second = read_results(file).values()
    assert first == Result(**RESULT)
    assert second.trace is not None


def test_records_and_traces_are_read_by_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    beside(file).write_text('{"runs": {}, "runs": {}}')
    with pytest.raises(ValueError, match="the key 'runs' stands twice"):
        read_records(file)
    file.write_text('{"dllm_trace": 1, "dllm_trace": 1}\n')
    with pytest.raises(ValueError, match="the key 'dllm_trace' stands twice"):
        read_held(file)


# What was written by the same process, or is only looked at to tell what it is.
OWN = {
    "dllm/reading.py": 1,
    "dllm/cli/asked.py": 1,
    "dllm/cli/prompt_file.py": 1,
    "eval/lm_eval/adapter.py": 1,
    "eval/run/run.py": 1,
    "eval/sandbox/child.py": 1,
    "eval/sandbox/sandbox.py": 1,
}


def test_nothing_else_reads_json_or_yaml() -> None:
    found: dict[str, int] = {}
    for top in ("dllm", "eval", "schedulers", "cache", "constraints"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    reads = node.attr in ("load", "loads", "load_all", "safe_load", "full_load")
                    if reads and node.value.id in ("json", "yaml"):
                        name = path.relative_to(ROOT).as_posix()
                        found[name] = found.get(name, 0) + 1
    assert found | {"eval/sandbox/sandbox.py": 1} == OWN
