"""Wrong files and values, at every command that reads one: a line, and nothing of them obeyed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import Inside

ESCAPES = b"\x1b]0;title\x07\x1b[31mred"
BOMB = [b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(8)]
WRONG: dict[str, bytes | None] = {
    "empty.x": b"",
    "marked.x": b"\xef\xbb\xbf[1]\r\n",
    "zeros.x": b"\0\0\0",
    "binary.x": bytes(range(256)) * 20,
    "half.x": b'{"run": "\\ud800", "id": "a", "prompt": "\\ud800", "text": "b"}\n',
    "deep.x": b"[" * 100_000,
    "bomb.x": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(BOMB),
    "escapes.x": ESCAPES + b"\nsecond\n",
    "keys.x": b'{"\\u001b[31m": 1, "run": 2}\n',
    "long.x": b"x" * 300_000,
    "number.x": b"3\n",
    "folder": None,
    "nothing.x": None,
}
READERS = [
    ["ablate"],
    ["ablate", "quickstart", "--limit", "1", "--compare"],
    ["compare"],
    ["trace"],
    ["doctor"],
    ["methods"],
    ["methods", "--into"],
    ["eval", "--schedulers"],
    ["eval", "--task", "gsm8k", "--limit", "1", "--data"],
    ["eval", "--task", "humaneval", "--limit", "1", "--data"],
    ["eval", "--limit", "1", "-s", "threshold", "--trace", "--output"],
    ["generate", "hi", "-m"],
    ["generate", "hi", "-s"],
    ["generate", "hi", "-n", "16", "--output"],
    ["generate", "hi", "-n", "16", "--trace"],
    ["train-filter", "--count", "12", "--epochs", "1", "-o", "f.safetensors", "--prompts"],
]
WRITTEN = {"empty.x", "nothing.x"}  # may be, by a command that writes


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "folder").mkdir()
    for name, content in WRONG.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.few(1)
@pytest.mark.parametrize("reader", READERS, ids=" ".join)
def test_a_wrong_file_is_a_short_line(inside: Inside, files: Path, reader: list[str]) -> None:
    for name, content in WRONG.items():
        done = inside(*reader, name)
        said = done.stdout + done.stderr
        assert done.returncode in (1, 2) or name in WRITTEN, (name, said)
        assert not set(said) & set("\x1b\x07\x9b"), name
        assert "Traceback" not in said
        assert "[Errno" not in said
        assert len(done.stderr) < 2500, name
        if content is not None and name not in WRITTEN:
            assert (files / name).read_bytes() == content, name


@pytest.mark.usefixtures("files")
def test_control_characters_of_prompts_and_answers_are_shown(inside: Inside) -> None:
    prompt = ESCAPES.decode()
    for more in ([], ["--watch"], ["--trace", "rows.jsonl"]):
        done = inside("generate", prompt, "-n", "16", *more)
        assert done.returncode == 0, done.stderr
        assert not set(done.stdout + done.stderr) & set("\x1b\x07")
    done = inside("trace", "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout + done.stderr) & set("\x1b\x07")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device-map", "disk"], "--device-map 'disk' must be \"auto\" or a mapping"),
        (["--device-map", "3"], "--device-map '3' must be"),
        (["--device-map", "[1]"], "--device-map '[1]' must be"),
        (["--device-map", "{"], "is not a YAML value"),
        (["--device-map", "{'': gpu}"], "device='gpu' is not known"),
        (["--device-map", "auto", "--device", "cpu"], "not both"),
        (["--revision", "v1"], "revision='v1' is for hub ids"),
        (["--adapter", "nowhere"], "adapter='nowhere': 'nowhere' is not an existing folder"),
    ],
)
@pytest.mark.parametrize(
    "command", [["generate", "hi"], ["chat"], ["eval"], ["verify"], ["cache-error"]], ids=" ".join
)
def test_where_a_model_goes_is_checked(
    inside: Inside, command: list[str], arguments: list[str], message: str
) -> None:
    done = inside(*command, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_device_map_is_obeyed(inside: Inside) -> None:
    for place in ("{'': cpu}", "auto"):
        done = inside("generate", "copy: tom, ann, sue.", "--device-map", place)
        assert done.stdout == "tom, ann, sue\n", done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "hi", "-n", "16", "--trace", "full.csv"],
        ["generate", "hi", "-n", "16", "--output", "full.csv"],
        ["cache-error", "-c", "dual", "--limit", "1", "--output", "full.csv"],
        ["cache-error", "-c", "dual", "--limit", "1", "--passes", "full.csv"],
        ["eval", "--limit", "1", "-s", "threshold", "--plot", "full.png"],
        ["trace", "rows.jsonl", "--html", "full.html"],
    ],
    ids=" ".join,
)
def test_a_full_disk_is_named(
    inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert inside("generate", "hi", "-n", "16", "--trace", "rows.jsonl").returncode == 0
    for name in ("full.csv", "full.png", "full.html"):
        Path(name).symlink_to("/dev/full")
    done = inside(*arguments)
    assert done.returncode == 2
    assert f"error: {arguments[-1]}: its disk is full" in done.stderr


def test_results_need_a_file_and_not_a_device(inside: Inside) -> None:
    done = inside("eval", "--limit", "1", "--output", "/dev/null")
    assert done.returncode == 2
    assert "/dev/null is a device: name a file" in done.stderr


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("dllm", f"{sys.executable} -m dllm", 1)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("line", ["dllm methods | head -1", "dllm methods --json | head -c 9"])
def test_a_reader_that_leaves_ends_it_quietly(line: str) -> None:
    assert shell(line).stderr == ""


@pytest.mark.slow
def test_standard_output_on_a_full_disk() -> None:
    done = shell("dllm methods > /dev/full")
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard output: its disk is full: make room, or choose another path\n"
    )


@pytest.mark.slow
def test_a_terminal_without_unicode() -> None:
    done = shell("LC_ALL=C PYTHONIOENCODING=ascii dllm generate 'z\u00e9bra\u2028?' -n 16")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert "Traceback" not in done.stderr
