"""The runner: one line a problem, resumed after a kill, the same whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

import dllm
from dllm.eval.run import execute
from dllm.eval.run.describe import short
from dllm.eval.run.results import RefusedError, read_results
from dllm.eval.run.run import Run
from dllm.eval.run.summary import summarise, wilson
from dllm.eval.tasks import TASKS, find_task
from dllm.settings import resolve


def run_of(model: dllm.HostedModel, batch_size: int = 4, **given: Any) -> Run:
    return Run(model, TASKS["arithmetic"], resolve(model.defaults, None, given), batch_size)


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(tiny: dllm.HostedModel) -> None:
    problems = TASKS["arithmetic"].take(7)
    for given in ({}, {"temperature": 0.7, "seed": 3}):
        runs = [
            {
                r.id: (r.text, r.forwards)
                for r in run_of(tiny, size, **given).results(problems, None)
            }
            for size in (1, 3, 7)
        ]
        assert runs[0] == runs[1] == runs[2]


def test_a_killed_run_goes_on_and_repeats_nothing(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems, output = TASKS["arithmetic"].take(10), tmp_path / "deep" / "rows.jsonl"
    decoded: list[str] = []
    original = execute.results

    def counted(run: Run, batch: Any) -> Any:
        for results in original(run, batch):
            if len(decoded) + len(results) > 8:
                raise KeyboardInterrupt
            decoded.extend(result.id for result in results)
            yield results

    monkeypatch.setattr(execute, "results", counted)
    with pytest.raises(KeyboardInterrupt):
        list(run_of(tiny).results(problems, output))
    assert list(read_results(output)) == decoded != []
    with output.open("a") as file:
        file.write('{"run": "cut o')  # the line that a kill cut off
    monkeypatch.setattr(execute, "results", original)
    results = list(run_of(tiny).results(problems, output))
    assert {result.id for result in results} == {problem.id for problem in problems}
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 10
    assert len({line["id"] for line in lines}) == 10
    assert len(read_results(output)) == 10
    whole = {r.id: r.text for r in run_of(tiny).results(problems, None)}
    assert {line["id"]: line["text"] for line in lines} == whole
    assert {"id", "text", "correct", "forwards", "valid_tokens", "settings"} <= set(lines[0])


def test_runs_with_other_settings_share_a_file(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    problems, output = TASKS["arithmetic"].take(4), tmp_path / "rows.jsonl"
    for scheduler in ("threshold:0.9", "threshold:0.5"):
        assert len(list(run_of(tiny, scheduler=scheduler).results(problems, output))) == 4
    assert len(output.read_text().splitlines()) == 8


@pytest.mark.parametrize(
    "given", [{"at_eos": "ignore"}, {"defer_eos": True}, {"top_k": 3}, {"cache": "dual"}]
)
def test_whatever_decides_the_answers_names_another_run(
    tiny: dllm.HostedModel, given: dict[str, Any]
) -> None:
    usual = run_of(tiny)
    assert run_of(tiny, **given).name != usual.name
    assert run_of(dllm.load("tiny", dtype="float64")).name != usual.name
    assert run_of(tiny, threshold=0.9, forbid_eos=False).name == usual.name


def test_a_refusal_leaves_no_file(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    run, output = run_of(tiny, scheduler="fixed_quota:steps=7"), tmp_path / "rows.jsonl"
    with pytest.raises(RefusedError, match="multiple of the 4 blocks"):
        list(run.results(TASKS["arithmetic"].take(1), output))
    assert not output.exists()


def test_a_damaged_file_is_not_overwritten(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    output.write_text("notes\nmore notes\n")
    with pytest.raises(ValueError, match="line 1 is not a result"):
        list(run_of(tiny).results(TASKS["arithmetic"].take(2), output))
    assert output.read_text() == "notes\nmore notes\n"


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (95, 100), (1, 3), (250, 500)])
def test_interval_agrees_with_scipy(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_an_interval_holds_its_proportion() -> None:
    for count in range(1, 200):
        for right in (0, 1, count - 1, count):
            low, high = wilson(right, count)
            assert 0 <= low <= right / count <= high <= 1


def test_summary_adds_up(tiny: dllm.HostedModel) -> None:
    results = list(run_of(tiny, scheduler="fixed_quota").results(TASKS["lists"].take(5), None))
    summary = summarise(results)
    assert summary.problems == 5
    assert summary.forwards == summary.row_forwards == sum(r.forwards for r in results) / 5
    assert summary.tokens_per_row_forward == summary.tokens_per_forward
    total = sum(r.valid_tokens for r in results)
    assert summary.tokens_per_forward == total / sum(r.forwards for r in results)
    with pytest.raises(ValueError, match="no results"):
        summarise([])


def test_tasks_are_named_and_bounded() -> None:
    with pytest.raises(ValueError, match="did you mean 'arithmetic'"):
        find_task("arithmetics")
    with pytest.raises(ValueError, match="limit=0"):
        TASKS["lists"].take(0)
    problems = TASKS["functions"].take(300)
    assert len({problem.prompt for problem in problems}) == 300


@pytest.mark.parametrize(
    "text",
    [
        *("threshold", "threshold:0.7", "fixed_quota:16,order=random", "dream:origin,steps=8"),
        *("prophet", "prophet:factor", "prophet:fixed_quota:16"),
    ],
)
def test_short_forms_build_the_same_scheduler(text: str) -> None:
    registry = dllm.schedulers.registry
    assert short(registry.create(text).summary(), registry) == text
