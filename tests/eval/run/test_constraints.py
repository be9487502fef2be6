"""Runs over problems that say what their answers must be: decoded under it, named, resumed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.constraints import Choice, Regex
from dllm.eval.run import execute
from dllm.eval.run.results import RefusedError, Result, read_results, sampled
from dllm.eval.run.run import Run
from dllm.eval.run.summary import summarise, totals_of
from dllm.eval.tasks import find_task
from dllm.eval.tasks.task import Problem, Task, TaskOptions
from dllm.settings import resolve
from tests.support import DATA
from tests.support.commands import runner
from tests.support.runs import ARITHMETIC

# Of each third problem one digit, of each third a letter; the others are free.
LANGUAGES = (Regex("[0-9]"), Regex("[a-z]"), None)
MIXED = [
    replace(problem, constraint=LANGUAGES[number % 3])
    for number, problem in enumerate(ARITHMETIC.take(7))
]
TASK = replace(ARITHMETIC, name="mixed", constrained=True)


def run_of(model: Any, num_rows: int = 3, task: Task = TASK, **given: Any) -> Run:
    constrained = given.pop("constrained", True)
    settings = resolve({}, None, {"max_new_tokens": 4, **given})
    return Run(model, task, settings, num_rows, constrained=constrained)


def texts(results: list[Result]) -> dict[str, Any]:
    return {r.id: (r.text, r.forced, r.forwards) for r in results}


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_each_problem_is_held_to_its_own(tiny: dllm.HostedModel, cache: str) -> None:
    found = list(run_of(tiny, cache=cache).results(MIXED, None))
    alone = list(run_of(tiny, 1, cache=cache).results(MIXED, None))
    assert texts(found) == texts(alone)
    for problem, result in zip(MIXED, sorted(found, key=lambda r: _place(r.id)), strict=True):
        held = problem.constraint
        assert (result.forced is None) == (result.nats_lost is None) == (held is None)
        assert isinstance(held, Regex) == bool(re.fullmatch("[0-9a-z]", result.text))
        assert not isinstance(held, Regex) or re.fullmatch(held.pattern, result.text)
        assert result.constraint_seconds is not None
    lost = {r.id: r.nats_lost for r in alone}
    assert all(r.nats_lost == pytest.approx(lost[r.id], abs=1e-3) for r in found)


def test_without_constraints_they_are_as_free_as_others(tiny: dllm.HostedModel) -> None:
    found = list(run_of(tiny, constrained=False).results(MIXED, None))
    free = list(run_of(tiny, task=ARITHMETIC).results(ARITHMETIC.take(7), None))
    assert {r.id: r.text for r in found} == {r.id: r.text for r in free}
    tolls = ("forced", "nats_lost", "constraint_seconds")
    assert all(getattr(r, name) is None for r in found for name in tolls)


def test_a_run_says_whether_its_problems_were_held(tiny: dllm.HostedModel) -> None:
    runs = [
        run_of(tiny),
        run_of(tiny, constrained=False),
        run_of(tiny, constrained=False, constraint=Regex("a")),
        run_of(tiny, task=ARITHMETIC),
    ]
    said = [run.describe()["other"].get("constraint") for run in runs]
    assert said == ["of each problem", "none", '{"regex": "a"}', None]
    assert len({run.name for run in runs}) == len(runs)


def test_a_killed_run_goes_on_under_the_same_constraints(
    tiny: dllm.HostedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, original = tmp_path / "rows.jsonl", execute.results
    decoded: list[str] = []

    def killed(run: Run, problems: Any) -> Any:
        for results in original(run, problems):
            if len(decoded) + len(results) > 4:
                raise KeyboardInterrupt
            decoded.extend(result.id for result in results)
            yield results

    monkeypatch.setattr(execute, "results", killed)
    with pytest.raises(KeyboardInterrupt):
        list(run_of(tiny, 2).results(MIXED, output))
    assert list(read_results(output)) == decoded != []
    monkeypatch.setattr(execute, "results", original)
    assert len(list(run_of(tiny, 2).results(MIXED, output))) == len(MIXED)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == len(MIXED)
    whole = texts(list(run_of(tiny, 1).results(MIXED, None)))
    assert texts(list(read_results(output).values())) == whole
    free = list(run_of(tiny, constrained=False).results(MIXED, output))  # beside it
    assert len(read_results(output, free[0].run)) == len(MIXED)
    assert len(output.read_text().splitlines()) == 2 * len(MIXED)


def test_samples_are_held_like_their_problem(tiny: dllm.HostedModel) -> None:
    run = run_of(tiny, temperature=1.5)
    tried = sampled(MIXED[:2], 3, run.settings)
    found = {result.id: result.text for result in run.results(tried, None)}
    assert len(found) == 6
    assert all(re.fullmatch("[0-9]", text) for id_, text in found.items() if _place(id_) == 0)
    assert all(re.fullmatch("[a-z]", text) for id_, text in found.items() if _place(id_) == 1)


def _place(name: str) -> int:
    ids = [problem.id for problem in MIXED]
    return ids.index(name.partition("#")[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"constraint": Regex("a")},
            "says what an answer must be, and so does each problem of 'mix",
        ),
        ({"task": ARITHMETIC}, "problems of 'arithmetic' have a constraint, which no run would be"),
        (
            {"task": ARITHMETIC, "constrained": False},
            r"--no-constrained \(constrained=False\): problems of 'arithmetic' do not say",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(
    tiny: dllm.HostedModel, given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(run_of(tiny, **given).results(MIXED, None))


@pytest.mark.parametrize("given", [{"scheduler": "lopa"}, {"stop": ("x",)}])
def test_what_goes_with_no_constraint_is_refused_in_few_words(
    tiny: dllm.HostedModel, given: Any
) -> None:
    long = [replace(problem, constraint=Choice(["add"] * 1000)) for problem in MIXED]
    with pytest.raises(RefusedError, match="constraint refuses") as refused:
        list(run_of(tiny, **given).results(long, None))
    assert len(str(refused.value)) < 300


def test_a_problem_without_room_for_its_answer_is_named(tiny: dllm.HostedModel) -> None:
    problems = [MIXED[2], replace(MIXED[0], constraint=Choice(["add, add, add"]))]
    with pytest.raises(RefusedError, match=f"problem '{MIXED[0].id}': prompt . *: Choice.*5 tok"):
        list(run_of(tiny).results(problems, None))


def test_what_constraints_cost_is_summed_up(tiny: dllm.HostedModel) -> None:
    found = list(run_of(tiny, scheduler="fixed_quota").results(MIXED, None))
    summary, totals = summarise(found), totals_of(found)
    held = [r for r in found if r.forced is not None]
    assert summary.forced == sum(r.forced or 0 for r in held) / len(held) > 0
    assert summary.nats_lost == pytest.approx(sum(r.nats_lost or 0 for r in held) / len(held))
    seconds = sum(r.constraint_seconds or 0 for r in found)
    steps = sum(r.steps or 0 for r in found)
    assert steps == pytest.approx(round(steps))  # of the batch
    assert summary.constraint_ms == pytest.approx(1000 * seconds / steps)
    assert 0 < seconds < sum(r.seconds for r in found)
    for name in ("forced", "nats_lost", "constraint_ms"):
        assert totals[name] == getattr(summary, name)


def test_the_command_compares_with_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    inside, output = runner(monkeypatch, capsys), tmp_path / "rows.jsonl"
    command = ("eval", "--task", "json", "-n", "8", "--limit", "6", "--output", str(output))
    (held,) = inside(*command, "--json").json["rows"]
    (free,) = inside(*command, "--no-constrained", "--json").json["rows"]
    assert held["scores"]["valid"] == 1 >= free["scores"]["valid"]
    assert held["constraint_ms"] > 0
    assert free["constraint_ms"] is None
    assert held["record"]["settings"]["other"]["constraint"] == "of each problem"
    shown = inside(*command)
    assert "each held to its constraint" in " ".join(shown.stdout.split())
    assert "nats lost" in shown.stdout
    compared = inside("compare", str(output), "--first", "of each", "--second", "none / none")
    assert compared.returncode == 0, compared.stderr
    refused = inside(*command, "--regex", "[0-9]")
    assert refused.returncode != 0
    assert "leave it out, or theirs (--no-constrained" in refused.stderr.replace("\n", " ")
    assert inside(*command, "--regex", "[0-9]", "--no-constrained").returncode == 0


def test_a_task_of_ones_own_may_have_constraints(tiny: dllm.HostedModel) -> None:
    problem = Problem("a", "sort: 2, 1.", "x", "x", constraint=Choice(["sort", "copy"]))
    task = Task("own", "", lambda *_: iter([problem]), lambda p, t: t == p.answer, constrained=True)
    (result,) = run_of(tiny, task=task).results(task.take(1), None)
    assert result.text in ("sort", "copy")


def test_files_of_json_mode_eval_are_decoded_without_what_no_token_spells(
    tiny: dllm.HostedModel,
) -> None:
    task = find_task("json_mode_eval", TaskOptions(data=DATA / "json_mode_eval.jsonl"))
    found = list(run_of(tiny, task=task, constrained=False).results(task.take(6), None))
    assert summarise(found).scores["valid"] == 0
    with pytest.raises(RefusedError, match="accepts no text that the tokenizer's tokens can spell"):
        list(run_of(tiny, task=task).results(task.take(6), None))
