"""`dllm serve`: what it says before it listens, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from tests.support.commands import Inside

LONG = 120.0
PENS = "tom has 53 pens. tom loses 3. how many pens does tom have?"
SLOW = {"model": "tiny", "prompt": PENS, "max_tokens": 200, "temperature": 0.3}
# About a second: a token a step, with nothing kept between steps.
SLOW["dllm"] = {"scheduler": "fixed_quota", "cache": "none", "at_eos": "ignore"}


def test_an_address_that_is_taken(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = inside("serve", "--port", str(port))
    assert done.returncode == 2
    assert f"--port {port}: another server listens there; --port 0 takes a free one" in done.stderr


def test_what_is_wrong_is_said_before_it_listens(inside: Inside, tmp_path: Path) -> None:
    for arguments, said in (
        (["--scheduler", "nobody"], "unknown scheduler 'nobody'"),
        (["--host", "256.1.1.1"], "there is no such address"),
        (["nowhere"], "nowhere"),
        (["--api-key-file", str(tmp_path / "none")], "no such file"),
    ):
        done = inside("serve", "--port", "0", *arguments)
        assert done.returncode == 2
        assert said in done.stderr
    empty = tmp_path / "key"
    empty.write_text("\n")
    done = inside("serve", "--port", "0", "--api-key-file", str(empty))
    assert "is empty: write the key into it" in done.stderr


def test_packages_that_are_missing(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm.cli.serve._NEEDED", ("fastapi", "no_such_package"))
    done = inside("serve")
    assert done.returncode == 2
    assert "dllm serve needs no_such_package: pip install 'dllm[serve]'" in done.stderr


@contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yields a server in a process of its own and its address."""
    command = [sys.executable, "-m", "dllm", "serve", "tiny", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://\S+?:\d+", line)
            assert found, line
            address = found[0]
            until = monotonic() + LONG
            while True:
                try:
                    httpx.get(f"{address}/health", timeout=1).raise_for_status()
                    break
                except httpx.HTTPError:
                    assert monotonic() < until
                    sleep(0.05)
            yield process, address
        finally:
            process.kill()


def ask(address: str, body: dict[str, Any], into: list[Any]) -> Thread:
    """Asks in a thread, and puts the answer or the error into a list."""

    def run() -> None:
        try:
            into.append(httpx.post(f"{address}/v1/completions", json=body, timeout=LONG))
        except httpx.HTTPError as error:
            into.append(error)

    thread = Thread(target=run)
    thread.start()
    return thread


def until_active(address: str) -> None:
    until = monotonic() + LONG
    while not httpx.get(f"{address}/health").json()["active"]:
        assert monotonic() < until
        sleep(0.002)


@pytest.mark.slow
def test_a_signal_ends_it_once_answers_are_there() -> None:
    with served() as (process, address):
        found: list[Any] = []
        thread = ask(address, {**SLOW, "n": 4}, found)
        until_active(address)
        process.send_signal(signal.SIGTERM)
        late: list[Any] = []
        ask(address, SLOW, late).join(LONG)
        thread.join(LONG)
        assert found[0].status_code == 200
        assert len(found[0].json()["choices"]) == 4
        assert isinstance(late[0], httpx.HTTPError) or late[0].status_code == 503
        assert process.wait(LONG) == 0


@pytest.mark.slow
def test_two_signals_end_it_at_once() -> None:
    with served() as (process, address):
        found: list[Any] = []
        thread = ask(address, {**SLOW, "n": 64}, found)
        until_active(address)
        process.send_signal(signal.SIGINT)
        sleep(0.1)
        process.send_signal(signal.SIGINT)
        thread.join(LONG)
        process.wait(LONG)
        assert isinstance(found[0], httpx.HTTPError) or found[0].status_code >= 500


@pytest.mark.slow
def test_a_kill_is_an_error_of_the_connection() -> None:
    with served() as (process, address):
        found: list[Any] = []
        thread = ask(address, {**SLOW, "n": 4}, found)
        until_active(address)
        process.kill()
        thread.join(LONG)
        assert isinstance(found[0], httpx.HTTPError)
    port = address.rpartition(":")[2]
    with served("--port", port) as (_, again):
        assert again == address
        answer = httpx.post(f"{again}/v1/completions", json={"model": "tiny", "prompt": PENS})
        assert json.loads(answer.text)["choices"][0]["finish_reason"] == "stop"
