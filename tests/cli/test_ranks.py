"""Commands over two processes of a launch: one of them speaks, and none outlives another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dllm")
PENS = "tom has 53 pens. tom loses 3. how many pens does tom have?"


@contextmanager
def launched(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yields a launcher of two processes; nothing of it stays."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [sys.executable, *LAUNCH, *arguments, "--tensor-parallel", "2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Returns the processes that a launcher started, the first rank first."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return sorted(map(int, found.split()))


@pytest.mark.slow
def test_one_of_them_answers() -> None:
    with launched("generate", PENS) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out == "53-3=50; #### 50\n"


@pytest.mark.slow
def test_one_of_them_writes_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    with launched("eval", "--limit", "8", "--output", str(rows)) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(rows.read_text().splitlines()) == 8


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_process_ends_a_server(dead: int) -> None:
    port = "18473" if dead else "18474"
    with launched("serve", "tiny", "--port", port) as process:
        until = monotonic() + 90
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                assert httpx.get(f"{address}/health").status_code == 200
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert monotonic() < until
                sleep(0.1)
        body = {"model": "tiny", "prompt": PENS}
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["text"].endswith("#### 50")
        os.kill(children_of(process)[dead], signal.SIGKILL)
        _, err = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "another process of this tensor parallel launch has ended" in err
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{address}/health")
