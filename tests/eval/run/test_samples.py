"""Several samples a problem, and pass@k in closed form."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.compare.paired import pair
from dllm.eval.run.results import Result, asked, problem_id, read_results, sampled
from dllm.eval.run.run import Run
from dllm.eval.run.summary import pass_at, passes, summarise, wilson
from dllm.eval.sandbox.verdict import SandboxError
from dllm.eval.tasks import TASKS, Task, find_task
from dllm.eval.tasks.task import Problem, TaskOptions
from dllm.settings import Settings, resolve
from tests.support.answers import answer_with
from tests.support.runs import result

HOT = Settings(temperature=1.0)


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_closed_form_and_the_share_of_draws(samples: int) -> None:
    for correct in range(samples + 1):
        right = [number < correct for number in range(samples)]
        for k in range(1, samples + 1):
            found = pass_at(samples, correct, k)
            assert found == pytest.approx(1 - comb(samples - correct, k) / comb(samples, k))
            draws = list(combinations(right, k))
            assert found == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_does_not_overflow() -> None:
    assert 0 < pass_at(100_000, 3, 100) < pass_at(100_000, 3, 50_000) < 1
    assert pass_at(200, 200, 1) == pass_at(10, 1, 10) == 1.0
    for samples, correct, k in ((3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)):
        with pytest.raises(ValueError, match="is not defined"):
            pass_at(samples, correct, k)


def test_the_estimates_are_means_over_problems() -> None:
    right = {"a": [True, False, False], "b": [True, True, True], "c": [False, False, False]}
    made = [
        result(f"{name}#{number}" if number else name, correct=value)
        for name, values in right.items()
        for number, value in enumerate(values)
    ]
    assert passes(made) == pytest.approx({1: 4 / 9, 2: (2 / 3 + 1) / 3, 3: 2 / 3})
    assert passes(made[:-1]) == pytest.approx({1: 4 / 9, 2: (2 / 3 + 1) / 3})  # c has two
    assert passes([made[0], made[3]]) == passes([]) == {}
    assert passes([result("a", correct=None), result("a#1", correct=None)]) == {}
    summary = summarise(_with_settings(made))
    assert (summary.problems, summary.scored, summary.correct) == (3, 9, 4)
    assert summary.accuracy == pytest.approx(summary.pass_at[1])
    assert (summary.accuracy_low, summary.accuracy_high) == wilson(4 / 3, 3)


def _with_settings(made: list[Result]) -> list[Result]:
    settings: dict[str, Any] = {
        "scheduler": {"name": "threshold", "threshold": 0.9},
        "cache": {"name": "none", "beyond_block": True},
    }
    return [replace(one, settings=settings) for one in made]


def test_samples_have_ids_of_their_own_and_the_judge_sees_the_problem() -> None:
    problem = Problem("HumanEval/3", "def f():", "", "")
    found = sampled([problem], 3, HOT)
    assert [p.id for p in found] == ["HumanEval/3", "HumanEval/3#1", "HumanEval/3#2"]
    assert all(asked(p) == problem for p in found)
    assert problem_id("C#") == "C#"
    assert problem_id("a#b") == "a#b"
    assert sampled([problem], 1, Settings()) == [problem]
    with pytest.raises(ValueError, match="samples=2 at temperature=0 would all be the same"):
        sampled([problem], 2, Settings())
    with pytest.raises(ValueError, match="samples=0 must be at least 1"):
        sampled([problem], 0, HOT)


ALIKE = ("T/1", "T/1#2", "T/1#2#0", "T/1#0", "#1", "a#b", "T/1#01", "T/1#²", "é#7")


@pytest.mark.parametrize("count", [1, 3])
def test_any_id_keeps_to_its_own_problem(count: int) -> None:
    """An id may end as a sample's does."""
    problems = [Problem(name, f"prompt of {name}", "", "") for name in ALIKE]
    found = sampled(problems, count, HOT)
    assert len({one.id for one in found}) == len(ALIKE) * count
    assert [asked(one) for one in found] == [p for p in problems for _ in range(count)]
    assert [asked(one) for one in problems] == problems  # a run without samples
    lines = [result(one.id, problem=asked(one).id) for one in found]
    assert [line.problem_id for line in lines] == [p.id for p in problems for _ in range(count)]
    first = [line.is_first_sample for line in lines]
    assert first == [number % count == 0 for number in range(len(lines))]
    assert repr(found[0]) == repr(Problem("T/1", "prompt of T/1", "", ""))  # digests stay


def test_ids_that_end_in_numbers_are_judged_counted_and_compared_by_themselves(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [Problem(name, name, name, name) for name in ("T/1", "T/1#1", "T/1#2")]
    answers = {problem.id: problem.answer for problem in problems}
    task = Task("own", "", lambda *_: iter(problems), lambda p, text: text == answers[p.id])
    answer_with(monkeypatch, str)
    run = Run(tiny, task, HOT, 2)
    for asking in (problems, sampled(problems, 2, HOT)):
        output = tmp_path / f"{len(asking)}.jsonl"
        found = list(run.results(asking, output))
        assert {one.correct for one in found} == {True}
        summary = summarise(found)
        assert (summary.problems, summary.scored) == (3, len(asking))
        kept = read_results(output)
        assert [one.problem for one in kept.values()] == [one.problem_id for one in found]
        assert pair(kept, kept).counts.both == 3


def test_more_samples_go_on_with_those_that_are_there(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    problems, output = TASKS["arithmetic"].take(2), tmp_path / "rows.jsonl"
    settings = resolve(tiny.defaults, None, {"temperature": 3.0, "seed": 4})
    run = Run(tiny, TASKS["arithmetic"], settings, 3)
    first = {r.id: r.text for r in run.results(problems, output)}
    more = {r.id: r.text for r in run.results(sampled(problems, 6, settings), output)}
    assert len(output.read_text().splitlines()) == len(more) == 12
    assert first.items() <= more.items()
    assert len(set(more.values())) > 2  # the seeds differ
    again = {r.id: r.text for r in run.results(sampled(problems, 6, settings), None)}
    assert again == more


def test_samples_on_the_command_line(tmp_path: Path) -> None:
    command = ["eval", "--limit", "2", "--samples", "2"]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ValueError)
    assert "set --temperature above 0" in str(refused.exception)
    clash = CliRunner().invoke(app, [*command, "--plot", str(tmp_path / "a.png")])
    assert "--samples, --vote and --record do not go with" in str(clash.exception)
    (row,) = json.loads(CliRunner().invoke(app, [*command, "-t", "0.5", "--json"]).stdout)["rows"]
    assert list(row["pass_at"]) == ["1", "2"]
    assert "pass@2" in CliRunner().invoke(app, [*command, "-t", "0.5"]).stdout


def test_samples_of_a_function_are_judged_by_its_tests(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "task_id": "HumanEval/0",
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "canonical_solution": "    return x\n",
        "test": "def check(f):\n    assert f(1) == 1\n",
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(record))
    answers = iter(["    return x\n", "    return 2\n", "    return 1\n"])
    answer_with(monkeypatch, lambda prompt: next(answers))
    try:
        task = find_task("humaneval", TaskOptions(data=tmp_path / "data.jsonl", run_code=True))
    except SandboxError as error:
        pytest.skip(str(error))
    run = Run(tiny, task, HOT, 2)
    found = list(run.results(sampled(task.take(1), 3, HOT), None))
    assert [(one.id, one.correct) for one in found] == [
        ("HumanEval/0", True),
        ("HumanEval/0#1", False),
        ("HumanEval/0#2", True),
    ]
    assert passes(found) == pytest.approx({1: 2 / 3, 2: 1.0, 3: 1.0})
    assert run.record([]).task["sandbox"] == found[0].details["sandbox"]
