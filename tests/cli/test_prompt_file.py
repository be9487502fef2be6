"""`dllm generate --prompts FILE --output FILE`: what is read, what is written, what is left."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.cli.asked import read_asked, read_texts
from dllm.cli.prompt_file import Job
from tests.support.commands import Inside
from tests.support.processes import start_dllm, wait_until

PROMPTS = [
    "tom has 53 pens. tom loses 3. how many pens does tom have?",
    "copy: tom, ann, sue.",
    "ann has 12 cups. ann buys 7 more. how many cups does ann have?",
    "copy: tom, ann, sue.",
    "write f(x): at least 7.",
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\n".join(PROMPTS).encode())
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_prompts_are_read_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_bytes("\ufeffone\r\n\r\ntwo\u2028too\r\nthree".encode())
    assert read_texts(lines, 10) == ["one", "two\u2028too", "three"]
    assert read_texts(lines, 2) == ["one", "two\u2028too"]
    records = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": "one", "id": "a"}, "two", {"messages": chat, "id": 3}]
    records.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = read_asked(records)
    assert [(one.prompt, one.id) for one in asked] == [("one", "a"), ("two", None), (chat, 3)]
    assert read_texts(records, 2) == ["one", "two"]
    with pytest.raises(ValueError, match=r"prompts.jsonl line 3 has messages"):
        read_texts(records, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "prompts.jsonl holds no prompts"),
        (b"\n \n", "prompts.jsonl holds no prompts"),
        (b'"one"\n{"text": "two"}', "line 2 must be a text, or a mapping"),
        (b'{"prompt": "a", "messages": []}', "line 1 must be a text, or a mapping"),
        (b'{"prompt": ""}', 'line 1: "prompt" is a text'),
        (b'{"messages": "hi"}', 'line 1: "prompt" is a text'),
        (b'{"prompt": "a", "id": [1]}', 'line 1: "id" must be'),
        (b'{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', "line 2 has the id 1 of"),
        (b"one", "line 1 is not valid JSON"),
        (b'{"prompt": "\\ud800"}', "line 1 is not JSON"),
        (b"[" * 100_000, "line 1 nests values deeper than 100"),
        (b'"one"\n"a\x00b"', "line 2 holds a NUL character"),
        (b"\xff\xfeo\x00", "is no text file in UTF-8"),
        (b"\xed\xa0\x80", "is no text file in UTF-8"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_asked(path)
    assert len(str(raised.value)) < 400


def test_each_answer_is_the_one_that_its_prompt_has_alone(
    inside: Inside, prompts: Path, tiny: dllm.HostedModel
) -> None:
    output = prompts.with_name("new") / "answers.jsonl"
    done = inside("generate", "--prompts", str(prompts), "--output", str(output), "--json")
    assert done.json == {"output": str(output), "prompts": 5, "were_there": 0}
    assert "5/5" in done.stderr
    rows = {row["number"]: row for row in lines_of(output)}
    for number, prompt in enumerate(PROMPTS, start=1):
        alone, row = dllm.generate(tiny, prompt), rows[number]
        assert alone.texts is not None
        metrics = alone.metrics.rows[0]
        assert (row["prompt"], row["text"]) == (prompt, alone.texts[0])
        assert row["finish_reason"] == metrics.finish_reason
        assert row["prompt_tokens"] == metrics.prompt_tokens
        assert (row["tokens"], row["forwards"]) == (metrics.valid_tokens, metrics.forwards)


def test_what_is_there_is_not_decoded_again(inside: Inside, prompts: Path) -> None:
    output = prompts.with_name("answers.jsonl")
    sampled = ["--seed", "3", "-t", "1", "--batch-size", "2"]
    command = ["generate", "--prompts", str(prompts), "--output", str(output), *sampled]
    assert inside(*command).returncode == 0
    whole = output.read_text(encoding="utf-8")
    first, second, *_ = whole.splitlines(keepends=True)
    output.write_text(first + second[: len(second) // 2], encoding="utf-8")  # a kill cut it off
    again = inside(*command)
    assert "1 of 5 were there already" in again.stderr
    assert sorted(lines_of(output), key=str) == sorted(
        [json.loads(line) for line in whole.splitlines()], key=str
    )
    before = output.read_bytes()
    assert "5 of 5 were there already" in inside(*command).stderr
    assert output.read_bytes() == before
    prompts.write_text("\n".join(["copy: joe.", *PROMPTS]), encoding="utf-8")
    assert "5 of 6 were there already" in inside(*command).stderr
    assert len(lines_of(output)) == 6


def test_answers_of_other_settings_are_not_mixed(inside: Inside, prompts: Path) -> None:
    output = prompts.with_name("answers.jsonl")
    command = ["generate", "--prompts", str(prompts), "--output", str(output)]
    assert inside(*command).returncode == 0
    before = output.read_bytes()
    for more in (["-s", "fixed_quota"], ["-n", "32"], ["--dtype", "float64"], ["--chat"]):
        done = inside(*command, *more)
        assert done.returncode == 2, more
        assert "give another --output" in done.stderr
    assert "max_new_tokens is 64 there, and 32 now" in inside(*command, "-n", "32").stderr
    output.write_text("my notes\n", encoding="utf-8")
    assert "line 1 is no answer of `dllm generate`" in inside(*command).stderr
    assert output.read_text(encoding="utf-8") == "my notes\n"
    assert before


def test_an_id_stays_with_its_prompt(inside: Inside, tmp_path: Path) -> None:
    file, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    command = ["generate", "--prompts", str(file), "--output", str(output), "-n", "16"]
    file.write_text('{"prompt": "copy: joe.", "id": "a"}\n', encoding="utf-8")
    assert inside(*command).returncode == 0
    (row,) = lines_of(output)
    assert row["id"] == "a"
    file.write_text('{"prompt": "copy: tom.", "id": "a"}\n', encoding="utf-8")
    assert "the id 'a' is that of another prompt" in inside(*command).stderr
    chat = [{"role": "user", "content": "copy: joe."}]
    file.write_text(json.dumps({"messages": chat, "id": "b"}), encoding="utf-8")
    assert inside(*command).returncode == 0
    assert [row.get("messages") for row in lines_of(output)] == [None, chat]


def test_from_stdin_to_stdout(inside: Inside) -> None:
    command = ["generate", "--prompts", "-", "-n", "16"]
    rows = inside(*command, stdin="copy: joe.\ncopy: tom.\n").lines
    assert {row["prompt"] for row in rows} == {"copy: joe.", "copy: tom."}
    as_json = '{"prompt": "copy: joe.", "id": 7}\n'
    assert inside(*command, "--output", "-", stdin=as_json).lines[0]["id"] == 7
    (row,) = inside("generate", "copy: joe.", "--output", "-", "-n", "16").lines
    assert row["prompt"] == "copy: joe."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a text to complete"),
        (["hi", "--prompts", "prompts.txt"], "not both"),
        (["--prompts", "prompts.txt", "--watch"], "--watch and --trace do not go"),
        (["--prompts", "nope.txt"], "there is no file of prompts 'nope.txt'"),
        (["--prompts", "."], ". is a folder: name a file of prompts"),
        (["--prompts", "prompts.txt", "--output", "."], "--output . is a folder"),
        (["--prompts", "prompts.txt", "--output", "/dev/full"], "/dev/full: its disk is full"),
        (
            ["--prompts", "prompts.txt", "-n", "1024"],
            "prompts.txt line 1: max_new_tokens=1024 is over",
        ),
        (["--prompts", "prompts.txt", "--set", "seed=[1]"], "give one number for a file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    inside: Inside,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(prompts.parent)
    done = inside("generate", *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_empty_lines_are_left_out_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    for text, told in (("a\n\n \nb\n\n", "2 empty lines are"), ("\na\n", "1 empty line is")):
        path.write_text(text)
        asked = read_asked(path)
        assert [one.number for one in asked] == list(range(1, len(asked) + 1))
        assert f"prompts.txt: {told} left out" in capsys.readouterr().err.replace("\n", "")
    path.write_text("a\nb\n\n\n")
    assert len(read_asked(path)) == 2
    assert capsys.readouterr().err == ""  # a file ends so


def test_what_decides_the_answers_is_described_as_often_for_many_as_for_few(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It digests the sources of all parts: once a line, Ctrl-C and the next start took minutes."""
    file, output, described = tmp_path / "prompts.txt", tmp_path / "answers.jsonl", list[Job]()
    describe = Job.describe

    def counted(job: Job) -> dict[str, Any]:
        described.append(job)
        return describe(job)

    monkeypatch.setattr(Job, "describe", counted)
    counts = []
    for count in (2, 12, 12):  # the last has all answers already
        file.write_text("\n".join(f"copy: tom, {'ann, ' * n}joe." for n in range(count)))
        described.clear()
        assert inside("generate", "--prompts", str(file), "--output", str(output)).returncode == 0
        assert len(lines_of(output)) == count
        counts.append(len(described))
    assert len(set(counts)) == 1
    assert 1 <= counts[0] <= 3


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(inside: Inside, tmp_path: Path) -> None:
    file, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    file.write_text("\n".join(f"tom has {n} pens. tom loses 3." for n in range(10, 60)))
    command = ["generate", "--prompts", str(file), "--output", str(output)]
    command += ["-s", "fixed_quota", "--batch-size", "2"]
    process = start_dllm(*command)
    wait_until(lambda: output.exists() and output.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    kept = lines_of(output)
    assert process.returncode == 130, stderr
    assert f"interrupted after {len(kept)} of 50 prompts; {output} is kept" in stderr
    assert 2 <= len(kept) < 50
    assert f"{len(kept)} of 50 were there already" in inside(*command).stderr
    assert len(lines_of(output)) == 50
    assert lines_of(output)[: len(kept)] == kept
