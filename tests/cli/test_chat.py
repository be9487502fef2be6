"""`dllm chat` as it is typed into, and as it is piped into."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest

from tests.support.commands import Inside
from tests.support.processes import start_dllm

QUESTION = "tom has 53 pens. tom loses 3. how many pens does tom have?"


def replies(stdout: str) -> list[str]:
    return [json.loads(line)["reply"] for line in stdout.splitlines()]


def test_every_line_of_a_pipe_is_answered(inside: Inside) -> None:
    done = inside("chat", "--json", stdin=f"\n{QUESTION}\n  \n\ncopy: joe.\n")
    assert done.returncode == 0, done.stderr
    first, second = replies(done.stdout)
    assert "#### 50" in first
    assert second
    shown = inside("chat", stdin=QUESTION)  # without an end of line
    assert "#### 50" in shown.stdout


def test_reset_forgets_and_quit_ends(inside: Inside) -> None:
    lines = f"{QUESTION}\n/reset\n{QUESTION}\n/quit\n{QUESTION}\n"
    done = inside("chat", "--json", stdin=lines)
    first, second = replies(done.stdout)
    assert first == second
    assert "forgotten" in done.stderr


def test_set_changes_the_next_answer_and_refuses_what_is_wrong(inside: Inside) -> None:
    lines = f"{QUESTION}\n/reset\n/set max_new_tokens=32\n/set scheduler=fixed_quota\n{QUESTION}\n"
    done = inside("chat", "--json", stdin=lines)
    few, many = (json.loads(line)["metrics"]["num_forwards"] for line in done.stdout.splitlines())
    assert few < many <= 32
    assert "max_new_tokens=32, scheduler=fixed_quota" in done.stderr
    wrong = inside("chat", stdin="/set colour=red\n")
    assert wrong.returncode == 2
    assert "unknown setting colour='red'" in wrong.stderr
    assert "write it as name=value" in inside("chat", stdin="/set colour\n").stderr
    assert "at their defaults" in inside("chat", stdin="/set\n").stderr


def test_commands_are_listed_and_guessed(inside: Inside) -> None:
    said = inside("chat", stdin="/help\n/rest\n/\n").stderr
    for name in ("/set name=value", "/reset", "/help", "/quit"):
        assert name in said
    assert "unknown command '/rest': did you mean 'reset'?" in said
    assert "known: help, quit, reset, set" in said


def test_the_system_text_goes_first(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    chat = sys.modules["dllm.cli.chat"]
    stream = chat.stream

    def watched(model: object, messages: list[dict[str, str]], **given: object) -> object:
        seen.append([message["role"] for message in messages])
        return stream(model, messages, **given)

    monkeypatch.setattr(chat, "stream", watched)
    lines = "copy: joe.\ncopy: joe.\n/reset\ncopy: joe.\n"
    assert inside("chat", "--system", "copy: tom.", "-n", "16", stdin=lines).returncode == 0
    turn = ["system", "user"]
    assert seen == [turn, [*turn, "assistant", "user"], turn]


@pytest.mark.slow
def test_ctrl_c_ends_the_answer_and_not_the_program() -> None:
    slow = ["-s", "fixed_quota", "-n", "240", "--set", "forbid_eos=true"]
    process = start_dllm("chat", "--json", *slow, pipe=True)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("zebra?\n")
    process.stdin.flush()
    assert "vocabulary lacks words" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert "stopped" in process.stderr.readline()
    out, error = process.communicate(
        f"/set max_new_tokens=64\n/set forbid_eos=false\n{QUESTION}\n/quit\n", timeout=60
    )
    assert process.returncode == 0, error
    assert len(replies(out)) == 1
    assert "#### 50" in out


@pytest.mark.slow
def test_ctrl_c_while_it_waits_ends_it() -> None:
    process = start_dllm("chat", "--json", pipe=True)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("/help\n")
    process.stdin.flush()
    assert "/set" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("interrupted\n")
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_terminal_stays_open_after_an_error() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["COLUMNS"] = "60"
        os.execv(sys.executable, [sys.executable, "-m", "dllm", "chat"])
    said = _until(terminal, "you")
    os.write(terminal, b"/set colour=red\n")
    said += _until(terminal, "error: unknown setting")
    os.write(terminal, QUESTION.encode() + b"\n")
    said += _until(terminal, "#### 50")
    os.write(terminal, b"\x04")
    assert os.waitpid(pid, 0)[1] == 0, said
    os.close(terminal)


def _until(terminal: int, text: str) -> str:
    said, end = "", time.monotonic() + 60
    while text not in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said):  # without colours
        ready, _, _ = select.select([terminal], [], [], 1)
        assert time.monotonic() < end, said
        said += os.read(terminal, 4096).decode(errors="replace") if ready else ""
    return said
