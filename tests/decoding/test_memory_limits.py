"""Running out of memory: a clear error, and nothing lost that was finished."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.cli.main import main
from dllm.cli.shown.alone import measure_runs
from dllm.decoding import memory_limits
from dllm.decoding.memory_limits import available, ran_out, readable
from dllm.eval.run.results import Result, read_results
from dllm.eval.run.run import Run
from dllm.eval.tasks import TASKS
from dllm.models.cost import Cost
from dllm.settings import resolve
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore
from tests.support.models import golden_model, random_prompts

SLOTS: dict[str, Any] = {"max_new_tokens": 16, "block_length": 8}
GPU_SAID = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSecond line."
CPU_SAID = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried"


class Tight:
    """A model whose device has no memory for some passes, or for the store."""

    def __init__(self, model: dllm.HostedModel, short: Callable[[int, int], bool]) -> None:
        self.model, self.short = model, short
        self.passes = self.stores = 0
        self.error: Exception = torch.OutOfMemoryError(GPU_SAID)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def new_store(self, num_rows: int, num_columns: int) -> KVStore:
        self.stores += 1
        if self.short(0, num_rows):
            raise self.error
        return self.model.new_store(num_rows, num_columns)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        self.passes += 1
        if self.short(self.passes, len(tokens)):
            raise self.error
        return self.model.forward(tokens, plan, store)


def tight(model: dllm.HostedModel, short: Callable[[int, int], bool]) -> Any:
    return Tight(model, short)


@pytest.mark.parametrize("said", [GPU_SAID, CPU_SAID, "CUDA error: out of memory"])
def test_a_pass_that_does_not_fit(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = golden_model("llada_gqa", "float32")
    full = tight(model, lambda passes, rows: passes == 4)
    full.error = torch.OutOfMemoryError(said) if "Tried" in said else RuntimeError(said)
    monkeypatch.setattr(memory_limits, "available", lambda device: 10**9)
    prompts = random_prompts(6)
    with pytest.raises(dllm.NotEnoughMemoryError) as caught:
        dllm.generate(full, prompts, cache="dual", scheduler="fixed_quota", **SLOTS)
    text, longest = str(caught.value), max(map(len, prompts)) + 16
    store = 6 * (longest + 8) + 1  # slots: rows of the canvas, and a scratch one
    expected = readable(store * 3 * 2 * 2 * 16 * 4)  # layers, keys and values, heads, width, bytes
    assert f"ran out in pass 4, for 6 row(s) of {longest} columns" in text
    assert f"a K/V store of {expected}" in text
    assert said.split("\n")[0] in text
    assert "Second line" not in text
    assert "by estimate that fits, so something else may hold the memory: try 3 row(s)" in text
    assert "fewer prompts at once" in text
    assert "max_new_tokens" in text
    partial = caught.value.partial
    assert partial is not None
    assert [row.raw_tokens for row in partial.metrics.rows] == [3] * 6  # one a pass
    assert partial.metrics.num_forwards == 4
    assert {row.finish_reason for row in partial.metrics.rows} == {"interrupted"}


def test_the_committed_tokens_are_those_of_an_unhindered_run() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(3)
    given: dict[str, Any] = {"cache": "prefix", "scheduler": "fixed_quota", **SLOTS}
    whole = dllm.generate(model, prompts, **given)
    with pytest.raises(dllm.NotEnoughMemoryError) as caught:
        dllm.generate(tight(model, lambda passes, rows: passes == 7), prompts, **given)
    partial = caught.value.partial
    assert partial is not None
    for row in range(3):
        assert partial.trace.commits(row) == whole.trace.commits(row)[:6]


def test_the_estimate_worked_by_hand() -> None:
    """1024 slots of 512 KiB, 1000 fed columns of 10 bytes, 32 rows of logits of 100."""
    cost = Cost(1, 1, 1, slot_bytes=512 * 1024, token_bytes=10, head_bytes=100)
    assert cost.row_bytes(1024, 1000, 32) == 1024 * 512 * 1024 + 10_000 + 3_200
    assert cost.times(2).row_bytes(1024, 1000, 32) == 2 * cost.row_bytes(1024, 1000, 32)


def test_a_store_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = golden_model("llada_gqa", "float32")
    full = tight(model, lambda passes, rows: rows > 2)
    bytes_of_row = model.cost.row_bytes(48, 40, 8)
    monkeypatch.setattr(memory_limits, "available", lambda device: 2 * bytes_of_row + 1)
    prompts = [[5] * 24] * 5
    with pytest.raises(dllm.NotEnoughMemoryError) as caught:
        dllm.generate(full, prompts, cache="dual", batch_size=5, **SLOTS)
    text = str(caught.value)
    store = 5 * 48 * 3 * 2 * 2 * 16 * 4
    assert (
        f"before the first pass, for 5 row(s) of 40 columns and a K/V store of {readable(store)}"
        in text
    )
    assert "about 2 row(s) of this length fit" in text
    assert "cache='none'" in text
    partial = caught.value.partial
    assert partial is not None
    assert partial.metrics.num_forwards == 0
    dllm.generate(full, prompts[:2], cache="dual", **SLOTS)  # what it said would fit does
    dllm.generate(full, prompts, cache="dual", **SLOTS)  # and what is chosen does
    monkeypatch.setattr(memory_limits, "available", lambda device: bytes_of_row - 1)
    with pytest.raises(dllm.NotEnoughMemoryError, match="not even one row of this length fits"):
        dllm.generate(full, prompts, cache="dual", batch_size=5, **SLOTS)
    bytes_without = model.cost.row_bytes(0, 40, 8)
    monkeypatch.setattr(memory_limits, "available", lambda device: 4 * bytes_without + 1)
    with pytest.raises(dllm.NotEnoughMemoryError, match=r"about 4 row\(s\) of this length fit"):
        dllm.generate(full, prompts, cache="none", batch_size=5, **SLOTS)
    monkeypatch.setattr(memory_limits, "available", lambda device: None)
    with pytest.raises(dllm.NotEnoughMemoryError, match="what would fit is not known"):
        dllm.generate(full, prompts, cache="dual", batch_size=5, **SLOTS)


def test_memory_that_the_machine_really_lacks() -> None:
    """The text of torch's own error is known, whatever allocator it comes from."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert ran_out(caught.value)
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shape mismatch"))
    free = available(torch.device("cpu"))
    assert free is None or free > 2**20
    assert available(torch.device("meta")) is None


def test_other_errors_stay_what_they_are() -> None:
    full = tight(golden_model("llada_gqa"), lambda passes, rows: passes == 2)
    full.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        dllm.generate(full, [[5] * 8], **SLOTS)
    assert not isinstance(caught.value, dllm.NotEnoughMemoryError)


def test_the_error_holds_no_tensors_of_the_failed_pass() -> None:
    full = tight(golden_model("llada_gqa"), lambda passes, rows: passes == 2)
    with pytest.raises(dllm.NotEnoughMemoryError) as caught:
        dllm.generate(full, [[5] * 8], cache="dual", **SLOTS)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_stream_tells_the_same_and_keeps_its_output() -> None:
    full = tight(golden_model("llada_gqa"), lambda passes, rows: passes == 3)
    running = dllm.stream(full, [[5] * 8], scheduler="fixed_quota", **SLOTS)
    with pytest.raises(dllm.NotEnoughMemoryError, match="in pass 3"):
        for _ in running:
            pass
    assert running.output.metrics.rows[0].raw_tokens == 2


@pytest.mark.parametrize("scheduler", ["fixed_quota", "lopa:0.6,branches=3", "wino:0.4"])
def test_the_store_is_made_once(scheduler: str) -> None:
    watched = tight(golden_model("llada_gqa"), lambda passes, rows: False)
    out = dllm.generate(watched, random_prompts(2), cache="dual", scheduler=scheduler, **SLOTS)
    assert watched.stores == 1
    assert watched.passes == out.metrics.num_forwards > 1


def runner(model: Any, batch_size: int, **given: Any) -> Run:
    settings = resolve(model.defaults, None, {"scheduler": "threshold:0.9", **given})
    return Run(model, TASKS["arithmetic"], settings, batch_size)


def until_short(results: Iterator[Result]) -> list[Result]:
    """Returns what comes before memory runs out, which it must."""
    found = []
    try:
        for result in results:
            found.append(result)
    except dllm.NotEnoughMemoryError:
        return found
    pytest.fail("memory did not run out")


def test_an_evaluation_loses_no_batch(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    problems, output = TASKS["arithmetic"].take(16), tmp_path / "rows.jsonl"
    expected = {r.id: r.text for r in runner(tiny, 4).results(problems, None)}
    whole = tight(tiny, lambda passes, rows: False)
    shortest = sorted(problems, key=lambda problem: len(problem.prompt))[:4]
    list(runner(whole, 4).results(shortest, None))
    full = tight(tiny, lambda passes, rows: rows > 1 and passes > whole.passes)
    seen = until_short(runner(full, 4).results(problems, output))
    kept = read_results(output)
    assert 0 < len(kept) < 16
    assert [result.id for result in seen] == list(kept)
    passes = full.passes
    again = list(runner(full, 1).results(problems, output))
    assert {r.id: r.text for r in again} == expected
    assert full.passes > passes
    assert len(output.read_text().splitlines()) == 16


@pytest.mark.slow
def test_finished_rows_of_the_failed_batch_are_kept(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    # So few and short that all are decoded at once, on any machine.
    problems = sorted(TASKS["arithmetic"].take(12), key=lambda problem: len(problem.prompt))[:4]
    whole = {r.id: r for r in runner(tiny, 4).results(problems, None)}
    counts = sorted({r.forwards for r in whole.values()})
    assert len(counts) > 1, "rows that finish at different passes are needed"
    done = counts[0]
    full = tight(tiny, lambda passes, rows: passes > done)
    found = until_short(runner(full, 4).results(problems, tmp_path / "rows.jsonl"))
    assert {r.id for r in found} == {i for i, r in whole.items() if r.forwards <= done}
    assert all(r.text == whole[r.id].text and r.forwards == whole[r.id].forwards for r in found)
    # Of a method that revises, full rows that may still be edited are not among them.
    full.passes, revising = 0, {"scheduler": "token_editing"}
    whole = {r.id: r for r in runner(tiny, 4, **revising).results(problems, None)}
    found = until_short(runner(full, 4, **revising).results(problems, None))
    assert {r.id for r in found} == {i for i, r in whole.items() if r.forwards <= done}
    assert all(r.text == whole[r.id].text for r in found)


def test_the_table_so_far_is_printed(
    tiny: dllm.HostedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = TASKS["arithmetic"].take(2)
    full = tight(tiny, lambda passes, rows: passes > 10)
    runs = [runner(full, 2), runner(full, 2, scheduler="fixed_quota", max_new_tokens=128)]
    with pytest.raises(dllm.NotEnoughMemoryError):
        measure_runs(runs, problems, None, as_json=True)
    assert [r["scheduler"] for r in json.loads(capsys.readouterr().out)["rows"]] == ["threshold"]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `dllm` on a device that fails in a pass; returns exit code, stdout and stderr."""

    def run(failing: int, *arguments: str) -> tuple[int, str, str]:
        passes, forward = count(1), dllm.HostedModel.forward

        def short(self: Any, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
            if next(passes) >= failing:
                raise torch.OutOfMemoryError(GPU_SAID)
            return forward(self, tokens, plan, store)

        monkeypatch.setattr(dllm.HostedModel, "forward", short)
        monkeypatch.setattr(sys, "argv", ["dllm", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        monkeypatch.setattr(dllm.HostedModel, "forward", forward)
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_generate_prints_what_there_is(command: Command) -> None:
    code, out, err = command(12, "generate", "copy: tom, ann.", "-s", "fixed_quota", "-n", "32")
    assert code == 2
    assert out.strip()
    assert "12 forwards" in err
    assert "error: memory ran out in pass 12" in err
    assert "Traceback" not in err


def test_a_comparison_goes_on_without_the_one_that_does_not_fit(
    command: Command, tmp_path: Path
) -> None:
    lineup = tmp_path / "lineup.yaml"
    lineup.write_text('["threshold:0.9", "fixed_quota"]')
    arguments = ("eval", "--schedulers", str(lineup), "--limit", "2", "--json")
    code, out, err = command(12, *arguments)
    assert code == 0, err
    first, second = json.loads(out)["rows"]
    assert first["accuracy"] is not None
    assert "memory ran out" in second["verdict"]


def test_bytes_are_readable() -> None:
    sizes = {0: "0 bytes", 1023: "1023 bytes", 1024: "1.0 KiB", 640 * 2**20: "640.0 MiB"}
    assert {size: readable(size) for size in sizes} == sizes
    assert readable(3 * 2**50) == "3072.0 TiB"
