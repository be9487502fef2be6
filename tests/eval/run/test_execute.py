"""Problems that wait take the places of finished ones: the same answers, each written at once."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.decoding.batching import ContinuousBatch
from dllm.eval.run import execute
from dllm.eval.run import run as run_module
from dllm.eval.run.execute import Shares, Spent
from dllm.eval.run.record import read_records
from dllm.eval.run.results import RefusedError, Result, read_results, sampled
from dllm.eval.run.run import Run
from dllm.eval.tasks.task import Judgement
from dllm.generate import Stream
from tests.support import ROOT
from tests.support.processes import start_dllm, wait_until
from tests.support.runs import ARITHMETIC, FAST, Counting, run_of

OF_THE_MOMENT = (
    *("seconds", "prefill_seconds", "latency", "finished", "start", "tokens_fed", "rows_fed"),
    "tokens_needed",
    *("flops", "steps", "constraint_seconds"),
)


def lasting(result: Result) -> dict[str, Any]:
    return {key: value for key, value in vars(result).items() if key not in OF_THE_MOMENT}


Streams = list[Stream]


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """The generations that runs have started."""
    found: Streams = []

    def kept(model: Any, prompts: Any, settings: Any, toll: Any, bound: int) -> Stream:
        found.append(Stream(model, prompts, settings, toll=toll, bound=bound))
        return found[-1]

    monkeypatch.setattr(execute, "Stream", kept)
    return found


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"cache": "dual", "temperature": 2.0, "seed": 3},
        {"verifier": "ssd:2"},
        {"scheduler": "token_editing:0.6"},
        {"cache": "prefix", "batch_size": 3},
        {"cache": "window_diffusion:8", "batch_size": 3},
    ],
    ids=str,
)
def test_answers_and_traces_are_those_of_one_problem_at_a_time(
    tiny: dllm.HostedModel, given: dict[str, Any], streams: Streams
) -> None:
    problems = ARITHMETIC.take(8)
    if given.get("temperature"):
        problems = sampled(problems[:4], 2, run_of(tiny, **given).settings)
    run = replace(run_of(tiny, 3, **given), keep_trace=True)
    together = {result.id: lasting(result) for result in run.results(problems, None)}
    assert len(streams) == 1
    assert streams[0].batch is not None
    single = replace(run, settings=replace(run.settings, batch_size=1))
    assert {r.id: lasting(r) for r in single.results(problems, None)} == together
    assert list(together) != [p.id for p in problems]
    assert {r.id: lasting(r) for r in run.results(problems[2:5], None)}.items() <= together.items()
    assert all(one["trace"]["finish_reason"] != "interrupted" for one in together.values())
    assert len({one["forwards"] for one in together.values()}) > 1


def test_a_result_is_on_the_disk_before_the_next_pass(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    output, problems, seen = tmp_path / "rows.jsonl", ARITHMETIC.take(9), []
    model: Any = Counting(tiny)
    model.before = lambda passes: seen.append(len(read_results(output)))
    list(run_of(model, 3).results(problems, output))
    assert seen == sorted(seen)
    assert seen[-1] >= 6
    assert len(set(seen)) >= 4, "rows did not end one by one"
    ends = expected_ends(run_of(tiny, 3), problems)
    assert seen == [sum(end <= passes for end in ends.values()) for passes in range(len(seen))]


def expected_ends(run: Run, problems: Any) -> dict[str, int]:
    """Returns after how many passes each row ends, worked out from forwards and lengths alone."""
    found = {r.id: r for r in run.results(problems, None)}
    ordered = sorted(problems, key=lambda problem: len(problem.prompt))
    length = {name: r.prompt_tokens + FAST["max_new_tokens"] for name, r in found.items()}
    waiting = sorted((problem.id for problem in ordered), key=length.__getitem__)
    going: dict[str, int] = {}
    ends: dict[str, int] = {}
    now = 0
    while waiting or going:
        while waiting and len(going) < run.num_rows:
            beside = [length[name] for name in (*going, waiting[0])]
            if going and sum(beside) < 0.94 * len(beside) * max(beside):
                break
            name = waiting.pop(0)
            going[name] = now + found[name].forwards
        now = min(going.values())
        ends |= {name: end for name, end in going.items() if end == now}
        going = {name: end for name, end in going.items() if end > now}
    return ends


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import dllm
from tests.support import ROOT
from tests.support.runs import ARITHMETIC, Counting, run_of

model = Counting(dllm.load("tiny"))
def before(passes):
    if passes == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
model.before = before
list(run_of(model, 3).results(ARITHMETIC.take(9), Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_kill_loses_the_rows_under_way_and_no_others(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    output, problems = tmp_path / "rows.jsonl", ARITHMETIC.take(9)
    ends = expected_ends(run_of(tiny, 3), problems)
    passes = sorted(ends.values())[4]
    command = [sys.executable, "-c", KILLED, str(output), str(passes)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = output.read_text()
    kept = read_results(output)
    assert set(kept) == {name for name, end in ends.items() if end <= passes}
    assert 4 < len(kept) < 9
    model: Any = Counting(tiny)
    results = list(run_of(model, 2).results(problems, output))
    assert output.read_text().startswith(before)
    assert len(output.read_text().splitlines()) == len(results) == 9
    undisturbed: Any = Counting(tiny)  # a model's class is part of what names a run
    whole = {r.id: lasting(r) for r in run_of(undisturbed, 9).results(problems, None)}
    assert {r.id: lasting(r) for r in results} == whole
    (record,) = read_records(output).values()
    assert [(start.batch_size, start.continuous) for start in record.starts] == [
        (3, True),
        (2, True),
    ]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory")], ids=repr
)
def test_what_is_finished_is_kept_when_a_run_stops(
    tiny: dllm.HostedModel, tmp_path: Path, error: BaseException
) -> None:
    output, problems = tmp_path / "rows.jsonl", ARITHMETIC.take(9)
    ends = expected_ends(run_of(tiny, 3), problems)
    passes = sorted(ends.values())[3]
    model: Any = Counting(tiny)

    def before(count: int) -> None:
        if count == passes:
            raise error

    model.before = before
    with pytest.raises((KeyboardInterrupt, dllm.NotEnoughMemoryError)):
        list(run_of(model, 3).results(problems, output))
    assert set(read_results(output)) == {name for name, end in ends.items() if end <= passes}
    assert len(list(run_of(tiny, 1).results(problems, output))) == 9


@pytest.mark.parametrize("cache", ["none", "dual", "prefix"])
def test_shares_add_up_to_what_was_spent(
    tiny: dllm.HostedModel, cache: str, streams: Streams
) -> None:
    found = list(run_of(tiny, 3, cache=cache).results(ARITHMETIC.take(8), None))
    assert len(streams) == 1
    for name in ("tokens_fed", "tokens_needed", "rows_fed", "flops"):
        spent = sum(getattr(stream.meter, name) for stream in streams)
        assert math.fsum(getattr(r, name) for r in found) == pytest.approx(spent, rel=1e-9)
    metrics = [stream.output.metrics for stream in streams]
    decoding_time = sum(m.seconds for m in metrics)
    assert 0 < math.fsum(r.seconds for r in found) < decoding_time
    for r in found:
        assert r.prefill_seconds is not None
        assert r.latency is not None
        assert r.rows_fed is not None
        assert 0 < r.prefill_seconds < r.seconds <= r.latency < decoding_time
        assert r.forwards <= r.rows_fed


def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"rows_fed": 0, "tokens_fed": 0, "tokens_needed": 0, "flops": 0}
    meter: Any = SimpleNamespace(probing=0.0, **counted)
    clock = 100.0
    monkeypatch.setattr("dllm.eval.run.execute.perf_counter", lambda: clock)
    steps = [  # prompts in the two places, finished ones, columns of a row, seconds
        ((0, 1), (0,), 12, 1.0),
        ((2, 1), (1,), 30, 2.0),
        ((2, 3), (2,), 4, 4.0),
        ((2, 3), (3,), 6, 8.0),
    ]
    expected = {  # columns, rows, seconds, of them in the first step, latency
        0: (12, 1, 0.5, 0.5, 1.0),
        1: (42, 2, 1.5, 0.5, 3.0),
        2: (34, 2, 3.0, 1.0, 6.0),
        3: (16, 3, 10.0, 2.0, 12.0),
    }

    def events() -> Iterator[Any]:
        nonlocal clock
        for prompts, finished, columns, seconds in steps:
            meter.rows_fed += 2
            meter.tokens_fed += 2 * columns
            meter.tokens_needed += columns
            meter.flops += 1000
            clock += seconds
            yield SimpleNamespace(prompts=prompts, finished=finished)

    shares = Shares(meter)
    for event in shares.watch(events()):
        for prompt in event.finished:
            share = shares.of(prompt)
            spent = share.spent
            found = (spent.tokens_fed, spent.rows_fed, spent.seconds, share.first, share.latency)
            assert found == expected.pop(prompt)
            assert spent.flops == 500 * spent.rows_fed
            assert spent.tokens_needed == spent.tokens_fed / 2
        clock += 50  # somebody judges
    assert not expected
    assert shares.of(9).spent == Spent()


def test_the_clock_stands_still_while_answers_are_judged(tiny: dllm.HostedModel) -> None:
    def slow(problem: Any, text: str) -> Judgement:
        time.sleep(0.1)
        return Judgement(True)

    run = replace(run_of(tiny, 2), task=replace(ARITHMETIC, judge=slow))
    start = time.perf_counter()
    found = list(run.results(ARITHMETIC.take(5), None))
    taken = time.perf_counter() - start
    assert math.fsum(r.seconds for r in found) < taken - 5 * 0.1


def test_fewer_passes_than_batches(tiny: dllm.HostedModel) -> None:
    ordered = sorted(ARITHMETIC.take(24), key=lambda problem: len(problem.prompt))
    passes = []
    for size in (24, 4):
        model: Any = Counting(tiny)
        for start in range(0, 24, size):
            list(run_of(model, 4).results(ordered[start : start + size], None))
        passes.append(model.passes)
    assert passes[0] < 0.9 * passes[1]


def test_where_problems_wait(tiny: dllm.HostedModel) -> None:
    free = [c for c in dllm.cache.registry.names() if run_of(tiny, cache=c).continuous]
    assert free == ["dual", "none", "sparse"]
    assert all(run_of(tiny, cache=c, batch_size=4).continuous for c in ("prefix", "dkv"))
    assert run_of(tiny, 7).num_rows == 7
    assert run_of(tiny, 7, batch_size=4).num_rows == 4


class Constant:
    """Noise that is the same for every row."""

    def tokens(self, columns: Tensor, step: Tensor, vocab_size: int) -> Tensor:
        return torch.zeros(*columns.shape, vocab_size)

    def columns(self, columns: Tensor, step: Tensor) -> Tensor:
        return torch.zeros(columns.shape)


def test_custom_noise_has_batches_and_is_refused_where_problems_would_wait(
    tiny: dllm.HostedModel, streams: Streams
) -> None:
    problems = ARITHMETIC.take(5)
    run = run_of(tiny, 2, noise=Constant(), temperature=0.5)
    assert not run.continuous
    assert len(list(run.results(problems, None))) == 5
    assert [len(stream.canvas.tokens) for stream in streams] == [2, 2, 1]
    asked = run_of(tiny, 2, noise=Constant(), batch_size=2)
    with pytest.raises(RefusedError, match="noise=Constant does not tell prompts apart"):
        list(asked.results(problems, None))


def test_the_way_of_batching_is_in_the_record_and_not_in_the_name(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    output = tmp_path / "rows.jsonl"
    runs = [run_of(tiny, 2), run_of(tiny, 5), run_of(tiny, 9, batch_size=3)]
    assert len({run.name for run in runs}) == 1
    for count, run in enumerate(runs, start=1):
        list(run.results(ARITHMETIC.take(count), output))
    (record,) = read_records(output).values()
    assert [start.batch_size for start in record.starts] == [2, 5, 3]
    kept = json.loads((tmp_path / "rows.runs.json").read_text())
    for start in kept["runs"][runs[0].name]["starts"]:
        assert start.pop("continuous") is True
    (tmp_path / "rows.runs.json").write_text(json.dumps(kept))
    assert read_records(output)[runs[0].name].starts[0].continuous is None
    assert len(list(runs[0].results(ARITHMETIC.take(4), output))) == 4


def test_many_problems_are_decoded_in_several_calls(
    tiny: dllm.HostedModel, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_TOGETHER", 4)
    problems = ARITHMETIC.take(10)
    found = list(run_of(tiny, 2).results(problems, None))
    assert [len(stream.canvas.layout.lengths) for stream in streams] == [4, 4, 2]
    assert {r.id for r in found} == {p.id for p in problems}
    longest = [max(stream.canvas.layout.lengths) for stream in streams]
    assert longest == sorted(longest)


def test_problems_with_nothing_to_fill_are_answered(tiny: dllm.HostedModel) -> None:
    fixed = dict.fromkeys(range(32), 5)
    found = list(run_of(tiny, 2, fixed=fixed).results(ARITHMETIC.take(5), None))
    assert len({r.id for r in found}) == 5
    assert {(r.forwards, r.seconds, r.latency, r.tokens_fed) for r in found} == {(0, 0, 0, 0)}


def test_what_a_judge_raises_is_no_refusal(tiny: dllm.HostedModel) -> None:
    def broken(problem: Any, text: str) -> Judgement:
        raise ValueError("no such unit")

    run = replace(run_of(tiny, 2), task=replace(ARITHMETIC, judge=broken))
    with pytest.raises(ValueError, match="no such unit") as caught:
        list(run.results(ARITHMETIC.take(3), None))
    assert not isinstance(caught.value, RefusedError)


def test_finished_rows_are_read_without_the_others(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [problem.prompt for problem in ARITHMETIC.take(6)]
    whole = dllm.generate(tiny, prompts, **FAST)
    running = dllm.stream(tiny, prompts, batch_size=2, **FAST)
    order: list[int] = []
    saved = ContinuousBatch.save
    assert whole.texts is not None
    for event in running:
        monkeypatch.setattr(ContinuousBatch, "save", None)  # copies all rows
        out = running.rows(event.finished)
        assert out.texts == tuple(whole.texts[prompt] for prompt in event.finished)
        assert out.metrics.rows == tuple(whole.metrics.rows[p] for p in event.finished)
        backwards = running.rows(event.prompts[::-1]).sequences
        assert backwards == running.rows(event.prompts).sequences[::-1]
        texts = [running.text(prompt) for prompt in range(6)]
        assert all("<mask>" not in texts[p] for p in (*order, *event.finished)), texts
        waiting = set(range(6)) - set(order) - set(event.prompts)
        assert all(texts[p].count(texts[p][:4]) > 4 for p in waiting)
        monkeypatch.setattr(ContinuousBatch, "save", saved)
        order += event.finished
    assert running.rows(order).texts == tuple(whole.texts[prompt] for prompt in order)
    assert running.output.texts == whole.texts
    assert running.text(-1) == running.text(5)
    with pytest.raises(IndexError):
        running.text(6)


def test_histories_are_read_once_and_stay_whole(tiny: dllm.HostedModel) -> None:
    prompts = [problem.prompt for problem in ARITHMETIC.take(6)]
    options = {**FAST, "scheduler": "token_editing:0.6"}
    whole = dllm.generate(tiny, prompts, **options)
    running = dllm.stream(tiny, prompts, batch_size=2, **options)
    found: dict[int, Any] = {}
    for event in running:
        changes = running.rows(event.finished).trace.changes
        assert changes is not None
        found |= dict(zip(event.finished, changes, strict=True))
        assert running.canvas.history == []
    assert whole.trace.changes == running.output.trace.changes
    assert tuple(found[prompt] for prompt in range(6)) == whole.trace.changes
    assert max(map(len, found.values())) > 0


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_keeps_what_is_finished(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = ["eval", "--limit", "40", "--batch-size", "4", "-s", "fixed_quota"]
    process = start_dllm(*arguments, "--output", str(output))
    wait_until(lambda: output.exists() and "\n" in output.read_text(), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors.replace("\n", " ")
    assert 0 < len(read_results(output)) < 40
