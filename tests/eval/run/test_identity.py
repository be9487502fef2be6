"""A run's name holds all that decides its answers: an edited rule is a new run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.constraints import ConstraintSpan, JsonSchema, Regex
from dllm.eval.run import digest_of, stable
from dllm.eval.run.results import BusyError, Writer, read_results
from dllm.eval.run.run import Run
from dllm.eval.tasks.task import Problem, Task
from dllm.models.loading.folder import EMBEDDED
from dllm.state.noise import CounterNoise
from tests.support.runs import ARITHMETIC, run_of

RULE = """
from dataclasses import dataclass

from dllm.schedulers.threshold import Threshold

LEAST = {least}

@dataclass(frozen=True)
class Own(Threshold):
    source = "mine"

    def decide(self, candidates, view):
        sure = candidates.confidence > LEAST
        return super().decide(candidates, view){more}
"""


def made(text: str, name: str = "__main__") -> type[Any]:
    """Returns the class of a cell of a notebook: there is no file, and all are in one module."""
    module = types.ModuleType(name)
    exec(text.replace("@dataclass", f"__name__ = {name!r}\n@dataclass"), vars(module))
    found: type[Any] = module.Own
    return found


@pytest.fixture
def in_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))


@pytest.mark.usefixtures("in_main")
def test_classes_of_a_notebook_are_told_apart_by_their_code() -> None:
    first, again = made(RULE.format(least=0.5, more="")), made(RULE.format(least=0.5, more=""))
    assert digest_of(first()) == digest_of(again())
    others = [
        made(RULE.format(least=0.6, more="")),  # a number that the rule reads
        made(RULE.format(least=0.5, more="  or 0")),  # its code
        made(RULE.format(least=0.5, more="").replace('"mine"', '"theirs"')),
    ]
    assert len({digest_of(one()) for one in (first, *others)}) == 4


@pytest.mark.usefixtures("in_main")
def test_functions_and_closures_that_a_class_reads_count() -> None:
    text = RULE.replace("> LEAST", "> least()").replace("LEAST = {least}", "{function}")
    one = "def least():\n    return 0.5"
    other = "def of(x):\n    def least():\n        return x\n    return least\nleast = of({})"
    found = [
        made(text.format(function=f, more="")) for f in (one, other.format(1), other.format(2))
    ]
    assert len({digest_of(value()) for value in found}) == 3
    assert digest_of(made(text.format(function=other.format(2), more=""))) == digest_of(found[2])


@pytest.mark.usefixtures("in_main")
def test_an_inner_part_counts() -> None:
    plain, edited = made(RULE.format(least=0.5, more="")), made(RULE.format(least=0.7, more=""))
    end_of_text = type(dllm.schedulers.registry.create("end_of_text"))
    wrapped = [end_of_text(inner=one()) for one in (plain, edited)]  # type: ignore[call-arg]
    assert digest_of(wrapped[0]) != digest_of(wrapped[1])


def test_a_method_put_in_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    part = dllm.schedulers.registry.create("threshold")
    before = digest_of(part)
    monkeypatch.setattr(type(part), "decide", lambda self, candidates, view: None)
    assert digest_of(part) != before
    monkeypatch.undo()
    assert digest_of(part) == before


SCRIPT = """
import sys
import dllm
from dllm.eval.run import digest_of
print(digest_of(dllm.schedulers.registry.create(sys.argv[1])))
"""


def seen(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PYTHONPATH": str(Path(dllm.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_an_edit_of_a_file_or_of_what_it_imports_counts(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "rule.py").write_text(
        "from mine.tools import LIMIT\n" + RULE.format(least=0.5, more="")
    )
    (folder / "tools.py").write_text("from mine import deep\nLIMIT = deep.LIMIT\n")
    (folder / "deep.py").write_text("LIMIT = 1\n")
    (folder / "foreign.py").write_text("LIMIT = 1\n")
    first = seen("mine.rule:Own", tmp_path)
    (folder / "foreign.py").write_text("LIMIT = 2\n")
    assert seen("mine.rule:Own", tmp_path) == first
    for edited in ("deep.py", "rule.py"):
        file = folder / edited
        file.write_text(file.read_text() + "AGAIN = 1\n")
        second = seen("mine.rule:Own", tmp_path)
        assert second != first
        first = second


def test_a_task_is_known_by_the_code_of_its_judge(tiny: dllm.HostedModel) -> None:
    def judged(least: int) -> Task:
        return replace(ARITHMETIC, judge=lambda problem, text: len(text) > least)

    runs = [replace(run_of(tiny), task=task) for task in (ARITHMETIC, judged(1), judged(2))]
    assert len({run.name for run in runs}) == 3
    assert replace(run_of(tiny), task=judged(2)).name == runs[2].name


def test_noise_generators_and_dtypes_name_a_run(tiny: dllm.HostedModel) -> None:
    given: list[dict[str, Any]] = [
        {},
        {"noise": CounterNoise(torch.tensor([1]))},
        {"noise": CounterNoise(torch.tensor([2]))},
        {"generator": torch.Generator().manual_seed(1)},
        {"generator": torch.Generator().manual_seed(2)},
        {"statistics_dtype": "float64"},
    ]
    names = [run_of(tiny, **one).name for one in given]
    assert len(set(names)) == len(given)
    assert [run_of(tiny, **one).name for one in given] == names
    json.dumps([run_of(tiny, **one).describe() for one in given])


def test_a_constraint_names_a_run_by_all_that_it_depends_on(tiny: dllm.HostedModel) -> None:
    pairs: list[Any] = [("a", {"type": "integer"}), ("b", {"type": "boolean"})]
    orders = (pairs, pairs[::-1])
    schemas = [{"type": "object", "properties": dict(order)} for order in orders]
    several: list[Any] = [
        None,
        *(Regex("[0-9]" * 40 + end) for end in "ab"),  # alike as far as a message shows them
        *map(JsonSchema, schemas),  # alike with their keys sorted
        JsonSchema(schemas[0], depth=2),
        ConstraintSpan(Regex("[0-9]"), 0, 3),
        ConstraintSpan(Regex("[0-9]"), 0, 4),
    ]
    names = [run_of(tiny, constraint=one).name for one in several]
    assert len(set(names)) == len(names)
    assert run_of(tiny, constraint=JsonSchema(schemas[0])).name == names[3]
    with pytest.raises(ValueError, match="is one for each prompt, and a run has one for all"):
        list(run_of(tiny, constraint=[Regex("a")]).results([], None))


def test_two_checkpoints_of_a_name_share_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    first = run_of(dllm.load(str(folder))).name
    assert run_of(dllm.load(str(folder))).name == first
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-3}))
    assert run_of(dllm.load(str(folder))).name != first


def test_a_model_of_another_class_is_another_run(tiny: dllm.HostedModel) -> None:
    class Other(dllm.HostedModel):
        def forward(self, *given: Any) -> Any:
            return -super().forward(*given)

    other = Other(**{name: getattr(tiny, name) for name in tiny.__dataclass_fields__})
    assert run_of(other).name != run_of(tiny).name


def test_values_without_json_are_told_apart() -> None:
    first, second = stable({"rule": lambda x: x + 1}), stable({"rule": lambda x: x + 2})
    assert first != second
    assert " at 0x" not in json.dumps([first, stable([object(), torch.float32, Path("a")])])


# Going on, and starting anew.


def old_format(output: Path, **settings: Any) -> None:
    """Leaves results as a version without records of code, or another version, wrote them."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for line in lines:
        line["run"] = "0123456789ab"
        for key in ("version", "sources", "checkpoint"):
            del line["settings"][key]
        line["settings"] |= settings
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("settings", [{}, {"version": "0.0.1"}])
def test_results_of_another_version_are_read_and_not_gone_on_with(
    tiny: dllm.HostedModel, tmp_path: Path, settings: dict[str, Any]
) -> None:
    output, problems = tmp_path / "rows.jsonl", ARITHMETIC.take(3)
    list(run_of(tiny).results(problems, output))
    old_format(output, **settings)
    before = output.read_text()
    by = settings.get("version", "kept no record")
    with pytest.raises(ValueError, match=rf"{by}.* made.*--fresh"):
        list(run_of(tiny).results(problems, output))
    assert output.read_text() == before
    assert len(read_results(output)) == 3
    list(run_of(tiny, scheduler="fixed_quota").results(problems, output))  # of another setting
    done = CliRunner().invoke(
        app, ["compare", str(output), "--first", "0123", "--second", "fixed_quota"]
    )
    assert done.exit_code == 0, done.output


def test_an_answer_to_another_problem_is_not_taken_over(
    tiny: dllm.HostedModel, tmp_path: Path
) -> None:
    output, problems = tmp_path / "rows.jsonl", ARITHMETIC.take(2)
    list(run_of(tiny).results(problems, output))
    other = [problems[0], replace(problems[1], prompt="5+5=", answer="10")]
    with pytest.raises(ValueError, match=f"another problem with the id {problems[1].id!r}"):
        list(run_of(tiny).results(other, output))


def test_fresh_keeps_what_was_there(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    output, problems = tmp_path / "rows.jsonl", ARITHMETIC.take(2)
    list(run_of(tiny).results(problems, output, fresh=True))  # of nothing
    first = output.read_text()
    for _ in range(2):
        list(run_of(tiny).results(problems[:1], output, fresh=True))
    assert (tmp_path / "rows.jsonl.old").read_text() == first
    assert (tmp_path / "rows.runs.json.old").is_file()
    assert len(read_results(tmp_path / "rows.jsonl.old1")) == len(read_results(output)) == 1
    writer = Writer(output)
    with pytest.raises(BusyError):
        list(run_of(tiny).results(problems, output, fresh=True))
    writer.close()
    assert len(read_results(output)) == 1


def test_the_name_stands_while_a_run_is_at_work(tiny: dllm.HostedModel, tmp_path: Path) -> None:
    problems: list[Problem] = ARITHMETIC.take(5)
    log: list[str] = []

    def judge(problem: Problem, text: str) -> bool:
        log.append(text)
        return True

    run: Run = replace(run_of(tiny, 2, cache="dual"), task=replace(ARITHMETIC, judge=judge))
    assert len({one.run for one in run.results(problems, tmp_path / "rows.jsonl")}) == 1


EVAL = ["eval", "--limit", "3", "-n", "16", "-b", "16"]


def test_the_command_says_what_was_there(tmp_path: Path) -> None:
    output = str(tmp_path / "rows.jsonl")
    said = [
        CliRunner().invoke(app, [*EVAL, "--output", output, *more])
        for more in ([], [], ["--fresh"])
    ]
    assert [one.exit_code for one in said] == [0, 0, 0]
    assert ["there already" in one.stderr for one in said] == [False, True, False]
    assert "3 of 3 were there already" in said[1].stderr
    assert "kept what was there as" in said[2].stderr
    refused = CliRunner().invoke(app, [*EVAL, "--fresh"])
    assert refused.exit_code != 0
    assert "--output" in str(refused.exception)


def test_an_edited_rule_is_measured_anew_by_the_command(tmp_path: Path) -> None:
    rule, output = tmp_path / "rule.py", tmp_path / "rows.jsonl"
    command = [*EVAL, "-s", f"{rule}:Own", "--output", str(output), "--json"]
    rule.write_text(RULE.format(least=0.5, more=""))
    first = CliRunner().invoke(app, command)
    rule.write_text(RULE.format(least=0.6, more=""))
    second = CliRunner().invoke(app, command)
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    assert "there already" not in second.stderr
    assert "goes beside it" in second.stderr
    names = [json.loads(one.stdout)["rows"][0]["record"]["run"] for one in (first, second)]
    assert len(set(names)) == 2
    again = CliRunner().invoke(app, command)
    assert "3 of 3 were there already" in again.stderr
