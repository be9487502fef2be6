"""C++ with holes: how a line is laid out, what is scored, and that what was removed is right."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dllm
from dllm.constraints import Choice, Hole, Template
from dllm.eval.run import execute
from dllm.eval.run.results import RefusedError, read_results
from dllm.eval.run.run import Run
from dllm.eval.sandbox import Sandbox, SandboxError
from dllm.eval.tasks import compiled, cpp_infilling, find_task
from dllm.eval.tasks.compiled import Compiler, open_compiler
from dllm.eval.tasks.cpp_infilling import MAIN
from dllm.eval.tasks.task import Problem, Task, TaskOptions
from dllm.settings import resolve
from tests.support import DATA
from tests.support.models import speaking_model
from tests.support.vocabularies import large_byte_level

FILE = DATA / "cpp_infilling.jsonl"
LINES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    if not any(map(shutil.which, compiled.COMPILERS)):
        pytest.skip("there is no C++ compiler")
    try:
        return open_compiler()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def task(compiler: Compiler) -> Task:
    return find_task("cpp_infilling", TaskOptions(data=FILE, run_code=True))


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of noise whose tokens spell any C++."""
    tokenizer = large_byte_level(600, seed=0)
    logits = torch.randn(1, 512, len(tokenizer), generator=torch.Generator().manual_seed(0))
    return dllm.wrap(
        lambda tokens, attention_mask: logits[:, : tokens.shape[1]].expand(len(tokens), -1, -1),
        vocab_size=len(tokenizer),
        tokenizer=tokenizer,
    )


def told(problem: Problem, line: dict[str, Any]) -> Problem:
    """The problem, each hole of which may hold nothing but what was removed."""
    spans = iter(line["removed_spans"])
    parts = (
        Hole(Choice([next(spans)]), tokens="auto") if isinstance(part, Hole) else part
        for part in (problem.template or Template(Hole())).parts
    )
    return replace(problem, template=Template(*parts))


def run_of(model: Any, task: Task, rows: int = 3, **given: Any) -> Run:
    return Run(model, task, resolve({}, None, given), rows)


def test_a_line_is_laid_out_as_published() -> None:
    problem = find_task("cpp_infilling", TaskOptions(data=FILE)).take(3)[1]
    line = LINES[1]
    assert problem.prompt == line["prompt"] + line["splits"][0]
    holes = Hole(tokens=(2, 4, 6, 8, 12, 16, 24, 32))
    last = "\n    return b;\n}\n\nint main(){\n// TODO\n }"
    assert problem.template == Template(holes, ")\n        return ", holes, last)
    assert problem.response == " > b)\n        return a;" + last
    assert problem.answer == " > b\na;"


@pytest.mark.parametrize(
    ("asked", "tokens"), [("7", [7] * 6), ("4,8", [(4, 8)] * 6), ("auto", ["auto"])]
)
def test_holes_are_as_long_as_asked(asked: str, tokens: list[Any]) -> None:
    problems = find_task("cpp_infilling", TaskOptions(data=FILE, hole_tokens=asked)).take(3)
    found = [hole.tokens for one in problems for hole in one.template.holes]  # type: ignore[union-attr]
    assert found[: len(tokens)] == tokens


def test_what_was_removed_is_right(task: Task) -> None:
    for problem in task.take(3):
        found = task.judgement(problem, problem.response)
        assert found.correct
        assert found.details["compiles"]
        assert found.details["exact"]
        assert found.details["ending"] == "passed"


@pytest.mark.parametrize(
    ("filled", "compiles", "ending", "error"),
    [
        ("sum = sum + one;", True, "passed", ""),
        ("sum += 1;", True, "assertion", "total({1, 2, 3}) == 6"),
        ("sum += one", False, "not compiled", "error:"),
        ("exit(0);", False, "not compiled", "exit"),  # is not declared
        ("__builtin_exit(0);", True, "exited", "before main returned"),
        ("__builtin_trap();", True, "crashed", "signal 4"),
    ],
)
def test_other_fillings(task: Task, filled: str, compiles: bool, ending: str, error: str) -> None:
    problem = task.take(1)[0]
    rest = str((problem.template or Template(Hole())).parts[-1])
    found = task.judgement(problem, filled + rest)
    assert (found.correct, found.details["compiles"]) == (ending == "passed", compiles)
    assert found.details["ending"] == ending
    assert error in found.details["error"]
    assert found.details["exact"] is False


@pytest.mark.parametrize("path", ["fd", "mem"])
def test_a_program_cannot_look_at_what_judges_it(compiler: Compiler, path: str) -> None:
    """What says that it passed is in the memory of the process that started it."""
    program = """
        #include <fcntl.h>
        #include <stdio.h>
        #include <unistd.h>
        int main() {
            char name[64];
            sprintf(name, "/proc/%d/PATH", getppid());
            return open(name, O_RDONLY) >= 0;
        }
    """
    assert compiler.run(program.replace("PATH", path)).passed


def test_a_program_that_never_ends_is_ended(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_RUNNING", 1)
    found = compiler.run("int main() { for (volatile int n = 0;; n = 1 - n); }")
    assert (found.compiles, found.ending, found.passed) == (True, "timeout", False)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_is_told_what_was_removed_scores_all(
    model: Any, task: Task, batch: int, tmp_path: Path
) -> None:
    problems = [told(one, line) for one, line in zip(task.take(3), LINES, strict=True)]
    output = tmp_path / "rows.jsonl"
    found = list(run_of(model, task, batch).results(problems, output))
    assert [one.correct for one in found] == [True] * 3
    assert all(one.details["exact"] for one in found)
    assert {one.id for one in read_results(output, found[0].run).values()} == {
        line["instance_id"] for line in LINES
    }


def test_costs_are_shared_by_answers_and_not_by_rows(model: Any, task: Task) -> None:
    """Two holes of two lengths each are four rows of one answer."""
    fewer = find_task("cpp_infilling", TaskOptions(data=FILE, hole_tokens="2,3"))
    (one,) = run_of(model, fewer, 16, block_length=8).results(fewer.take(2)[1:], None)
    both = list(run_of(model, fewer, 16, block_length=8).results(fewer.take(2), None))
    assert one.row_forwards >= 4
    assert one.rows_fed is not None
    assert one.steps is not None
    assert one.rows_fed >= 4 * 2
    assert one.steps == int(one.steps)  # of the only one under way: whole steps
    assert len(both) == 2


def test_a_run_is_scored_afterwards(
    model: Any, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = find_task("cpp_infilling", TaskOptions(data=FILE))
    output = tmp_path / "rows.jsonl"
    problems = [told(one, line) for one, line in zip(free.take(3), LINES, strict=True)]
    first = list(run_of(model, free).results(problems, output))
    assert [one.correct for one in first] == [None] * 3
    assert run_of(model, free).name == run_of(model, task).name
    monkeypatch.setattr(execute, "results", None)  # nothing is decoded again
    again = list(run_of(model, task).results(problems, output))
    assert [one.correct for one in again] == [True] * 3


def test_other_lengths_are_another_run(model: Any) -> None:
    names = {
        run_of(model, find_task("cpp_infilling", TaskOptions(data=FILE, hole_tokens=one))).name
        for one in (None, "4", "8", "4,8")
    }
    assert len(names) == 4


def test_models_that_do_not_see_what_follows_refuse() -> None:
    host = speaking_model("sdar", large_byte_level(600, seed=0))
    task = find_task("cpp_infilling", TaskOptions(data=FILE, hole_tokens="4"))
    with pytest.raises(RefusedError, match=r"problem 'Own/.*cannot see"):
        list(run_of(host, task).results(task.take(1), None))


def test_settings_that_say_how_much_is_written_refuse(model: Any) -> None:
    task = find_task("cpp_infilling", TaskOptions(data=FILE, hole_tokens="4"))
    with pytest.raises(RefusedError, match="max_new_tokens=8: the template says how many"):
        list(run_of(model, task, max_new_tokens=8).results(task.take(1), None))
    with pytest.raises(ValueError, match="and so does each problem of 'cpp_infilling'"):
        list(run_of(model, task, template=Template(Hole())).results(task.take(1), None))
    bare = [replace(one, template=None) for one in task.take(2)]
    with pytest.raises(ValueError, match="'Own/0_spans_1' of 'cpp_infilling' has no template"):
        list(run_of(model, task).results(bare, None))
    other = replace(task, laid_out=False)
    with pytest.raises(ValueError, match="make the task with laid_out=True"):
        list(run_of(model, other).results(task.take(1), None))


def test_without_a_compiler_it_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"neither g\+\+ nor clang\+\+ on PATH: install one"):
        find_task("cpp_infilling", TaskOptions(data=FILE, run_code=True))
    find_task("cpp_infilling", TaskOptions(data=FILE))  # writes only


def test_a_compiler_that_does_not_work_is_said_before_the_run(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    with pytest.raises(SandboxError, match="/bin/false does not work in the sandbox"):
        open_compiler()


def test_a_sandbox_without_processes_is_said_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(compiled, "open_sandbox", lambda: Sandbox("limits"))
    with pytest.raises(SandboxError, match=r"of which sandbox level 'limits'.* allows none"):
        open_compiler()


def test_text_that_is_not_what_was_laid_out_is_an_error() -> None:
    task = find_task("cpp_infilling", TaskOptions(data=FILE))
    problem = task.take(1)[0]
    with pytest.raises(ValueError, match="tokenizer does not give back C\\+\\+ as it is written"):
        task.judgement(problem, problem.response.replace(MAIN, "int main ( )"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": None}, "line 1, field 'test' must be a text"),
        ({"splits": "a"}, "line 1, field 'splits' must be a list of texts, but is a str"),
        ({"splits": ["a"]}, "line 1 has 1 splits and 1 removed_spans"),
        ({"splits": ["a"], "removed_spans": []}, "at least one span"),
        ({"removed_spans": [1]}, "field 'removed_spans', item 0"),
    ],
)
def test_lines_that_are_something_else(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**LINES[0], **changed}), encoding="utf-8")
    if changed == {"removed_spans": [1]}:  # numbers are read as they are written
        found = find_task("cpp_infilling", TaskOptions(data=path)).take(1)[0]
        assert found.answer == "1"
        return
    with pytest.raises(ValueError, match=message):
        find_task("cpp_infilling", TaskOptions(data=path))


def test_ids(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    older = {key: value for key, value in LINES[0].items() if key != "instance_id"}
    path.write_text(json.dumps({**older, "task_id": "CPP/0_lines_1"}), encoding="utf-8")
    assert find_task("cpp_infilling", TaskOptions(data=path)).take(1)[0].id == "CPP/0_lines_1"
    path.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1 has no field 'instance_id'.* its fields are"):
        find_task("cpp_infilling", TaskOptions(data=path))
    path.write_text(f"{json.dumps(LINES[0])}\n" * 2, encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 has the id 'Own/0_spans_1' a second time"):
        find_task("cpp_infilling", TaskOptions(data=path))


def test_problems_of_one_beginning_are_several(tmp_path: Path) -> None:
    path, other = tmp_path / "rows.jsonl", {**LINES[0], "instance_id": "other"}
    path.write_text("\n".join(map(json.dumps, (LINES[0], other))), encoding="utf-8")
    assert len(find_task("cpp_infilling", TaskOptions(data=path)).take(9)) == 2


def test_more_holes_than_lengths_can_be_tried_of(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    many = {**LINES[0], "splits": ["a"] * 8, "removed_spans": ["b"] * 7}
    path.write_text(json.dumps(many), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has 7 holes.*--hole-tokens 16"):
        find_task("cpp_infilling", TaskOptions(data=path))
    assert find_task("cpp_infilling", TaskOptions(data=path, hole_tokens="16")).take(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name the file with --data FILE, JSON lines with instance_id, prompt"),
        ({"data": FILE, "shots": 2}, "--shots.* is laid out as it is"),
        ({"data": FILE, "hole_tokens": "0"}, "--hole-tokens '0' must be a number of tokens from 1"),
        ({"data": FILE, "hole_tokens": "4,many"}, '"auto", or of single holes "cal"'),
        ({"data": FILE, "hole_tokens": "5000"}, "from 1 to 4096"),
    ],
)
def test_what_cannot_be_asked_says_so(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_task("cpp_infilling", TaskOptions(**options))


def test_other_tasks_have_no_holes() -> None:
    with pytest.raises(ValueError, match="--hole-tokens: only the task 'cpp_infilling' has these"):
        find_task("gsm8k", TaskOptions(hole_tokens="4"))


def test_lengths() -> None:
    assert cpp_infilling.lengths_of(None) == cpp_infilling.lengths_of(" auto") == "auto"
    assert cpp_infilling.lengths_of("4, 8") == (4, 8)
    assert cpp_infilling.lengths_of("cal") == "cal"


def test_lengths_that_are_probed_are_of_single_holes(model: Any) -> None:
    task = find_task("cpp_infilling", TaskOptions(data=FILE, hole_tokens="cal"))
    one, two = task.take(2)
    (found,) = run_of(model, task).results([one], None)
    assert found.rows_fed is not None
    assert found.rows_fed >= 64 + found.forwards
    assert found.row_forwards == found.forwards
    with pytest.raises(RefusedError, match=r"problem 'Own/1_spans_2': .*has 2 holes"):
        list(run_of(model, task).results([two], None))
