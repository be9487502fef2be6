"""HumanEval: how code is found in answers, and that only the sandbox scores it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.cli.main import main
from dllm.eval.run.results import read_results
from dllm.eval.run.run import Run
from dllm.eval.run.summary import record, summarise
from dllm.eval.sandbox import Sandbox, open_sandbox
from dllm.eval.sandbox.verdict import SandboxError, Verdict
from dllm.eval.tasks import Task, find_task
from dllm.eval.tasks import humaneval as task_module
from dllm.eval.tasks.dataset import Record
from dllm.eval.tasks.humaneval import Judge, complete, cut, find_style, program, read
from dllm.eval.tasks.task import TaskOptions
from dllm.settings import resolve
from tests.support import DATA
from tests.support.answers import answer_with

PROBLEMS = DATA / "humaneval.jsonl"
EVEN, TWICE, HYPOTENUSE = "HumanEval/900", "HumanEval/901", "HumanEval/902"
ALL = (EVEN, TWICE, HYPOTENUSE)


@pytest.fixture(scope="module")
def data() -> dict[str, Record]:
    return read(TaskOptions(PROBLEMS))


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return open_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))


def task_of(style: str = "base", run_code: bool = False) -> Task:
    return find_task("humaneval", TaskOptions(PROBLEMS, style, run_code=run_code))


def run_of(model: dllm.HostedModel, task: Task) -> Run:
    return Run(model, task, resolve(model.defaults, None, {}), 2)


BODY = "    return sum(n for n in numbers if n % 2 == 0)"
BARE = "return sum(n for n in numbers if n % 2 == 0)"
WHOLE = f"def total_of_even(numbers):\n{BODY}"
CASES = "chosen = [n for n in numbers if n % 2 == 0]\nif chosen:\n    return sum(chosen)\nreturn 0"
LOOP = "total = 0\nfor n in numbers:\n    if n % 2 == 0:\n        total += n\nreturn total"
STRIPPED = "total = 0\n    for n in numbers:\n        total += n * (n % 2 == 0)\n    return total"
OTHER = "def other():\n    return 1"

# what was written, the rule that finds the code
ANSWERS = [
    (f"```python\n{WHOLE}\n```", "fence with the function"),
    (f"Sure:\n```python\n{WHOLE}\n```\nIt sums.", "fence with the function"),
    (f"```\n{WHOLE}\n```", "fence with the function"),
    (f"```py\n{WHOLE}", "fence with the function"),  # never closed
    (f"```python\n{OTHER}\n```\nand\n```python\n{WHOLE}\n```", "fence with the function"),
    (f"```python\nfrom typing import List\n{OTHER}\n\n{WHOLE}\n```", "fence with the function"),
    (f"```python\n{WHOLE}\n\ndef check(c): pass\n```", "fence with the function"),
    (f"```python\n{BODY}\n```", "fence"),
    (f"```python\n{BARE}\n```", "fence"),
    (f"```python\n{LOOP}\n```", "fence"),
    (f"```python\n{STRIPPED}\n```", "fence"),
    (f"{WHOLE}\n\nprint(total_of_even([1]))", "text with the function"),
    (f"from typing import List\n\n{WHOLE}\n\n# done\n1 / 0", "text with the function"),
    (BODY, "text"),
    (BARE, "text"),
    (f"{BODY}\n\ndef other():\n    1 / 0\n", "text"),
    (f"{BARE}\nprint(1 / 0)", "text"),
    (CASES, "text"),  # stops that are a part of it
    (f"{STRIPPED}\n\nprint(1 / 0)", "text"),
    (f"{BARE}\n# It's done.", "text"),
]
WRONG = [
    ("", "text"),
    ("```python\n```", "fence"),
    (f"```python\n{OTHER}\n```", "fence"),
    ("I cannot.", "text"),
    (f"```python\n{WHOLE.replace('== 0', '== 1')}\n```", "fence with the function"),
    (f"```python\nimport sys\nsys.exit(0)\n{WHOLE}\n```", "fence with the function"),
]


@pytest.mark.few(9)
@pytest.mark.parametrize(("text", "rung"), ANSWERS)
def test_code_is_found(data: dict[str, Record], sandbox: Sandbox, text: str, rung: str) -> None:
    found = complete(data[EVEN], text)
    assert found.rung == rung
    assert sandbox.run(program(data[EVEN], found.code)).detail == ""


@pytest.mark.few(3)
@pytest.mark.parametrize(("text", "rung"), WRONG)
def test_wrong_code_fails(data: dict[str, Record], sandbox: Sandbox, text: str, rung: str) -> None:
    found = complete(data[EVEN], text)
    assert found.rung == rung
    assert not sandbox.run(program(data[EVEN], found.code)).passed


def test_functions_of_the_prompt_stay(data: dict[str, Record], sandbox: Sandbox) -> None:
    text = "```python\ndef is_twice(text):\n    return twice(text[: len(text) // 2]) == text\n```"
    found = complete(data[TWICE], text)
    assert found.code.startswith("def twice(text: str):")
    assert sandbox.run(program(data[TWICE], found.code)).passed


def test_a_continuation_is_cut_and_nothing_else(data: dict[str, Record]) -> None:
    prompt = data[EVEN]["prompt"]
    for stop in ("class A:", "def f():", "# more", "if x:", "print(1)"):
        assert cut(data[EVEN], f"{BODY}\n{stop}\n").code == prompt + BODY
    assert cut(data[EVEN], f"{BODY}\n    # inside\n").code == f"{prompt}{BODY}\n    # inside\n"
    assert cut(data[EVEN], BARE).code == prompt + BARE
    assert cut(data[EVEN], "").code == prompt


def test_prompts(data: dict[str, Record]) -> None:
    base, instruct = task_of().take(9), task_of("instruct").take(9)
    assert [problem.given for problem in base] == [data[name]["prompt"] for name in ALL]
    assert [problem.id for problem in instruct] == list(ALL)
    for problem in instruct:
        ((role, text),) = problem.turns
        assert problem.given == [{"role": role, "content": text}]
        assert role == "user"
        assert f"```python\n{data[problem.id]['prompt'].strip()}\n```" in text


def test_nothing_runs_unless_asked(
    tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> Verdict:
        raise AssertionError("code was run")

    monkeypatch.setattr(Sandbox, "run", refuse)
    task, output = task_of(), tmp_path / "rows.jsonl"
    assert not task.scored
    answer_with(monkeypatch, lambda prompt: "    import os; os._exit(1)")
    results = list(run_of(tiny, task).results(task.take(3), output))
    assert [result.correct for result in results] == [None] * 3
    assert {result.details["rung"] for result in results} == {"text"}
    assert all("sandbox" not in result.details for result in results)
    summary = summarise(results)
    assert (summary.problems, summary.scored) == (3, 0)
    assert record(summary)["accuracy"] is None


def test_a_run_that_was_not_scored_is_scored_later_without_decoding(
    tiny: dllm.HostedModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data: dict[str, Record],
    sandbox: Sandbox,
) -> None:
    output, task = tmp_path / "rows.jsonl", task_of()
    by_prompt = {r["prompt"]: r["canonical_solution"] for r in data.values()}
    asked = answer_with(monkeypatch, lambda prompt: by_prompt[prompt])
    list(run_of(tiny, task).results(task.take(2), output))
    monkeypatch.setattr(task_module, "open_sandbox", lambda: sandbox)
    scoring = task_of(run_code=True)
    assert scoring.scored
    assert run_of(tiny, scoring).name == run_of(tiny, task).name
    results = list(run_of(tiny, scoring).results(scoring.take(3), output))
    assert [result.correct for result in results] == [True] * 3
    assert len(asked) == 3
    assert {result.details["sandbox"] for result in results} == {sandbox.level}
    kept = read_results(output)
    assert [kept[name].correct for name in ALL] == [True] * 3
    lines = len(output.read_text().splitlines())
    list(run_of(tiny, scoring).results(scoring.take(3), output))
    assert len(output.read_text().splitlines()) == lines == 5  # two of them twice


@pytest.mark.few(1)
@pytest.mark.parametrize("style", ["base", "instruct"])
def test_gold_passes_and_wrong_fails(
    tiny: dllm.HostedModel,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Record],
    sandbox: Sandbox,
    style: str,
) -> None:
    monkeypatch.setattr(task_module, "open_sandbox", lambda: sandbox)
    task = task_of(style, run_code=True)
    problems = {str(problem.given): data[problem.id] for problem in task.take(3)}

    def gold(prompt: Any) -> str:
        record = problems[str(prompt)]
        if style == "base":
            return record["canonical_solution"]
        return f"```python\n{record['prompt']}{record['canonical_solution']}```"

    answer_with(monkeypatch, gold)
    assert summarise(list(run_of(tiny, task).results(task.take(3), None))).accuracy == 1
    answer_with(monkeypatch, lambda prompt: "    return None\n")
    results = list(run_of(tiny, task).results(task.take(3), None))
    assert summarise(results).accuracy == 0
    assert {result.details["ending"] for result in results} <= {"assertion", "exception"}


def test_a_time_out_is_tried_once_more(data: dict[str, Record]) -> None:
    endings = ["timeout", "passed", "timeout", "timeout", "assertion"]

    class Scripted(Sandbox):
        def run(self, program: str) -> Verdict:
            return Verdict(endings.pop(0), "", "limits", 0.0)  # type: ignore[arg-type]

    judge = Judge(find_style("base"), data, Scripted("limits"))
    (problem, *_) = task_of().take(1)
    assert [judge(problem, BODY).correct for _ in range(3)] == [True, False, False]
    assert not endings


def test_unfinished_definitions_do_not_break_the_judge(data: dict[str, Record]) -> None:
    judge = Judge(find_style("instruct"), data, None)
    (problem, *_) = task_of("instruct").take(1)
    for text in ("```", "```python", "``````", "\0", "(" * 3000, "```python\n" + "-" * 5000 + "1"):
        assert judge(problem, text).correct is None


def test_lower_file_mistakes() -> None:
    with pytest.raises(ValueError, match="asked without solved problems"):
        find_task("humaneval", TaskOptions(PROBLEMS, shots=2))
    with pytest.raises(ValueError, match="did you mean 'instruct'"):
        find_task("humaneval", TaskOptions(PROBLEMS, "instuct"))


def test_two_problems_with_one_id_are_refused(tmp_path: Path) -> None:
    line = PROBLEMS.read_text().splitlines()[0]
    (tmp_path / "twice.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match="has the task_id 'HumanEval/900' twice"):
        find_task("humaneval", TaskOptions(tmp_path / "twice.jsonl"))


def test_the_command_line_says_what_was_not_scored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer_with(monkeypatch, lambda prompt: "    return 1\n")
    command = ["dllm", "eval", "--task", "humaneval", "--data", str(PROBLEMS), "--limit", "2"]

    def told(*more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    code, out, err = told()
    assert (code, "not scored" in out, "--run-code" in err) == (0, True, True)
    code, out, err = told("--json")
    assert '"accuracy": null' in out
    code, out, err = told("--plot", str(tmp_path / "plot.png"))
    assert code == 2
    assert "has none without --run-code" in err


def test_styles_are_runs_of_their_own(tiny: dllm.HostedModel) -> None:
    runs = [run_of(tiny, task_of(style)) for style in ("base", "instruct")]
    assert runs[0].name != runs[1].name
    assert runs[0].describe()["task_options"]["style"] == "base"
    other = replace(runs[0].task, options={**runs[0].task.options, "problems": "others"})
    assert replace(runs[0], task=other).name != runs[0].name
