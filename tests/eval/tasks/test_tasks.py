"""The contract of every task: problems by seed, and a judge that knows the right answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dllm.eval import tasks
from dllm.eval.tasks import READ, TASKS, Task, find_task
from dllm.eval.tasks.task import TaskOptions
from tests.support import DATA

OPTIONS: dict[str, Any] = {"gsm8k": {"shots": 0}}  # of tasks that do not run at their defaults


def task_of(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    return find_task(name, TaskOptions(data=DATA / f"{name}.jsonl", **OPTIONS.get(name, {})))


def test_every_task_that_is_read_has_problems_here() -> None:
    assert {name for name in READ if not (DATA / f"{name}.jsonl").is_file()} == set()


@pytest.mark.parametrize("name", [*TASKS, *READ])
def test_problems_are_all_different_and_the_same_again(name: str) -> None:
    task = task_of(name)
    problems = task.take(6)
    assert problems == task_of(name).take(6)
    assert problems[:3] == task.take(3)
    assert len({problem.id for problem in problems}) == len(problems)
    assert len({problem.prompt for problem in problems}) == len(problems)
    assert task.name == name
    assert task.description


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_and_the_split_make_other_problems(name: str) -> None:
    made = [
        TASKS[name].take(6),
        TASKS[name].take(6, seed=1),
        TASKS[name].take(6, split="validation"),
    ]
    prompts = [tuple(problem.prompt for problem in problems) for problems in made]
    assert len(set(prompts)) == len(made)


@pytest.mark.parametrize("name", [*TASKS, *READ])
def test_the_response_is_right_and_nothing_is_not(name: str) -> None:
    task = task_of(name)
    for problem in task.take(6):
        if task.scored:
            assert task.is_correct(problem, problem.response)
            assert task.judgement(problem, problem.response).correct
        assert not task.is_correct(problem, "")


def test_a_new_task_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [task.name for task in tasks.declared()]
    assert known == [*known[:3], *sorted(known[3:])]
    lines = ["from dataclasses import replace", "from dllm.eval.tasks.lists import TASK as LISTS"]
    lines.append("TASK = replace(LISTS, name='newly_written')")
    (tmp_path / "newly_written.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dllm.eval.tasks.newly_written", raising=False)
    assert sorted(task.name for task in tasks.declared()) == sorted([*known, "newly_written"])
