"""Real processes: killed at any moment, in any number, they leave what one of them leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import dllm
from dllm.eval.run.processes import find_shards
from dllm.eval.run.record import read_records
from dllm.eval.run.results import read_lines
from dllm.eval.run.run import Run
from dllm.eval.tasks import TASKS
from dllm.settings import resolve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LIMIT = 24
COMMAND = ("eval", "--limit", str(LIMIT), "--batch-size", "2", "-s", "fixed_quota", "--output")
# What depends on the moment, the machine or the batch; everything else has to agree.
OF_THE_MOMENT = (
    *("seconds", "prefill_seconds", "latency", "finished", "start", "tokens_fed", "rows_fed"),
    "tokens_needed",
    *("flops", "steps", "constraint_seconds"),
)


def lasting(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in OF_THE_MOMENT}


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    """The lines that an undisturbed process writes."""
    model = dllm.load("tiny")
    settings = resolve(model.defaults, None, {"scheduler": "fixed_quota"})
    run = Run(model, TASKS["arithmetic"], settings, 2)
    made = list(run.results(TASKS["arithmetic"].take(LIMIT), None))
    return [lasting(json.dumps(vars(one))) for one in made]


Started = list[subprocess.Popen[str]]
Launch = Callable[..., Started]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts `dllm` in several processes as a launcher would, but watches over none of them.

    As with torchrun, the store in which they meet is the launcher's: it holds its port from the
    moment when the system chose it, so that nobody else can take it.
    """
    started: Started = []
    stores: list[TCPStore] = []

    def run(count: int, *arguments: str) -> Started:
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        own = []
        for rank in range(count):
            several = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(stores[-1].port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
            }
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            own.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dllm", *arguments],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**environment, **(several if count > 1 else {})},
                )
            )
        started.extend(own)
        return own

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def finished(processes: Started) -> list[tuple[int, str, str]]:
    """Waits for processes, whose output fits the pipes; returns exit codes, stdout and stderr."""
    said = [process.communicate(timeout=200) for process in processes]
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, said, strict=True)]


def lines_of(*paths: Path) -> list[str]:
    """Returns the whole lines of files."""
    texts = [path.read_text() for path in paths if path.exists()]
    return [line for text in texts for line in text.split("\n")[:-1]]


def wait_for(count: int, output: Path, rank: int | None = None) -> list[str]:
    """Returns the lines when there are so many, of the parts, of one part, or of the output."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        parts = find_shards(output)
        if rank is not None:
            parts = [part for part in parts if part.name.endswith(f"part{rank}")]
        lines = lines_of(output, *parts)
        if len(lines) >= count:
            return lines
        time.sleep(0.02)
    pytest.fail(f"{output} did not get {count} lines")


def check_whole(output: Path, expected: list[dict[str, Any]], before: list[str]) -> None:
    lines = lines_of(output)
    assert len(lines) == LIMIT
    assert set(before) <= set(lines), "what was there is kept to the byte, so was not run again"
    by_id = {line["id"]: line for line in map(lasting, lines)}
    assert by_id == {line["id"]: line for line in expected}
    assert not find_shards(output)
    (record,) = read_records(output).values()
    made = [result.start for result in read_lines(output)]
    assert {start.id for start in record.starts} >= set(made)


def test_kill_and_go_on_alone(
    launch: Launch, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    output = tmp_path / "rows.jsonl"
    (process,) = launch(1, *COMMAND, str(output))
    before = wait_for(4, output)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines_of(output)
    assert 4 <= len(before) < LIMIT
    ((code, _, err),) = finished(launch(1, *COMMAND, str(output)))
    assert code == 0, err
    check_whole(output, expected, before)
    (record,) = read_records(output).values()
    assert len(record.starts) == 2


def test_two_processes_write_what_one_writes_and_one_of_them_talks(
    launch: Launch, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    output = tmp_path / "rows.jsonl"
    (main, other) = finished(launch(2, *COMMAND, str(output), "--json"))
    assert main[0] == other[0] == 0, (main, other)
    assert (other[1], other[2]) == ("", "")
    (row,) = json.loads(main[1])["rows"]
    assert row["record"]["totals"]["answers"] == LIMIT
    ((start,), lines) = row["record"]["starts"], lines_of(output)
    assert len(start["processes"]) == 2
    assert start["answers"] == LIMIT
    lengths = [len(lasting(line)["prompt"]) for line in lines]
    assert lengths == sorted(lengths)
    check_whole(output, expected, lines)
    # There is nothing left to do for three.
    again = finished(launch(3, *COMMAND, str(output), "--json"))
    assert [code for code, _, _ in again] == [0, 0, 0]
    assert json.loads(again[0][1])["rows"][0]["accuracy"] == row["accuracy"]
    assert lines_of(output) == lines


@pytest.mark.parametrize(("dead", "then"), [(0, 1), (1, 3)])
def test_a_dead_process_hangs_nobody_and_others_go_on_in_any_number(
    launch: Launch, tmp_path: Path, expected: list[dict[str, Any]], dead: int, then: int
) -> None:
    output = tmp_path / "rows.jsonl"
    processes = launch(2, *COMMAND, str(output))
    wait_for(2, output, rank=dead)
    processes[dead].send_signal(signal.SIGKILL)
    said = finished(processes)  # the other one ends by itself
    assert said[dead][0] == -signal.SIGKILL
    assert said[1 - dead][0] == 2
    assert dead == 0 or "another process of this launch ended" in said[0][2].replace("\n", " ")
    before = lines_of(output, *find_shards(output))
    assert LIMIT // 2 < len(before) < LIMIT
    for code, _, err in finished(launch(then, *COMMAND, str(output))):
        assert code == 0, err
    check_whole(output, expected, before)


@pytest.mark.whole  # one killed alone, and one of two, are slow tests
def test_all_of_three_killed_then_two(
    launch: Launch, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    output = tmp_path / "rows.jsonl"
    processes = launch(3, *COMMAND, str(output))
    wait_for(6, output)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    finished(processes)
    before = lines_of(output, *find_shards(output))
    assert len({json.loads(line)["id"] for line in before}) == len(before)
    for code, _, err in finished(launch(2, *COMMAND, str(output))):
        assert code == 0, err
    check_whole(output, expected, before)


def test_an_error_is_said_once(launch: Launch, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = ("eval", "--limit", "3", "-s", "fixed_quota:steps=7", "--output", str(output))
    (main, other) = finished(launch(2, *arguments))
    assert main[0] == other[0] == 2
    assert "multiple of the 4 blocks" in main[2]
    assert other[2] == ""
    assert not output.exists()


def test_processes_hold_each_problem_to_its_own_constraint(launch: Launch, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{count}.jsonl" for count in (1, 2)]
    command = ("eval", "--task", "json", "--limit", "8", "-n", "8", "--batch-size", "2")
    for count, output in enumerate(outputs, start=1):
        for code, _, err in finished(launch(count, *command, "--output", str(output))):
            assert code == 0, err
    alone, shared = ({r.id: r for r in read_lines(output)} for output in outputs)
    assert alone.keys() == shared.keys()
    for name, result in alone.items():
        other = shared[name]
        assert (result.run, result.text, result.forced) == (other.run, other.text, other.forced)
        assert result.nats_lost == pytest.approx(other.nats_lost, abs=1e-3)
        assert result.details["valid"]
