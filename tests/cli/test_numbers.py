"""No number of a command line, or of a dataclass that a user fills, is taken as it comes."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from typer.testing import CliRunner

import dllm.eval
import dllm.training
from dllm.cli.commands import SUMMARIES, function_of
from dllm.cli.main import app
from dllm.eval.ablation.ablation import Ablation, Published, Row, TaskChoice
from dllm.eval.compare import Prompted
from dllm.eval.compare.cache_error_run import CacheErrorRun
from dllm.eval.compare.verification import Trial
from dllm.eval.lm_eval.arguments import Arguments
from dllm.eval.lm_eval.likelihood import Scorer
from dllm.eval.run.describe import Setup
from dllm.eval.run.record import Environment, Start
from dllm.eval.run.results import Result
from dllm.eval.run.run import Run
from dllm.eval.sandbox.verdict import Limits
from dllm.eval.tasks.json import Selection as Records
from dllm.eval.tasks.parallel_bench import Selection
from dllm.eval.tasks.task import TaskOptions
from dllm.options import Range
from dllm.training.context_filter import Recipe as ContextRecipe
from dllm.training.learn2pd import Recipe
from dllm.training.learn2pd_examples import Source

# Filled by a user: by a command line, a file, or a call.
FILLED = {
    *(Setup, Run, TaskOptions, TaskChoice, Published, Row, Ablation, CacheErrorRun, Trial, Limits),
    *(Records, Selection, Arguments, Scorer, Result, Recipe, Source, Prompted, Environment, Start),
    ContextRecipe,
}
# Filled by dllm with what it counted, measured or drew, or with constants of its own.
MADE = {
    *("ablation.lines.Candidate", "ablation.bench.Trial", "report.standings.Contender"),
    *("compare.cache_error_run.Observed", "compare.cache_error_run.CacheError"),
    *("compare.paired.Counts", "compare.paired.Pairing", "compare.verification.Divergence"),
    *("compare.verification.Spent", "compare.verification.Verification"),
    *("lm_eval.adapter.Stats", "lm_eval.likelihood.Continuation", "lm_eval.likelihood.Score"),
    *("lm_eval.requests.Asked", "report.ablation.Difference", "report.aup.Measured"),
    *("report.aup.Area", "report.page_figures.Axis", "report.plot.Box", "report.plot.Label"),
    *("run.execute.Spent", "run.execute.Share", "run.processes.Processes", "run.summary.Summary"),
    *("sandbox.verdict.Verdict", "tasks.answers._Fence", "tasks.answers.Term"),
    *("tasks.gsm8k.Style", "tasks.parallel_bench.waiting_line.Line"),
    *("tasks.parallel_bench.waiting_line.Operation", "training.context_filter.Course"),
    "training.learn2pd.Score",
    *("training.tiny.Recipe", "training.tiny_corpus.Mixture", "training.tiny_corpus.Row"),
    "training.wider.Growth",
}


def numbers(hint: Any) -> Iterator[tuple[type, list[Range]]]:
    """Yields each kind of number that a type allows, with its ranges."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated and args[0] in (int, float):
        yield args[0], [extra for extra in args[1:] if isinstance(extra, Range)]
    elif hint in (int, float):
        yield hint, []
    elif origin is not typing.Literal and not (isinstance(origin, type) and "Map" in str(origin)):
        for arg in args:
            yield from numbers(arg)


def of_numbers(owner: Any) -> dict[str, list[tuple[type, list[Range]]]]:
    hints = typing.get_type_hints(owner, include_extras=True)
    names = [field.name for field in dataclasses.fields(owner) if field.init]
    return {name: found for name in names if (found := list(numbers(hints[name])))}


def owners() -> Iterator[Any]:
    """Yields each dataclass of the rooms in which users' numbers arrive."""
    for room in (dllm.eval, dllm.training):
        for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            module = importlib.import_module(found.name)
            for value in vars(module).values():
                own = isinstance(value, type) and value.__module__ == found.name
                if own and dataclasses.is_dataclass(value) and of_numbers(value):
                    yield value


def test_every_dataclass_with_numbers_is_bounded_or_made_by_dllm() -> None:
    loose = {
        f"{owner.__module__}.{owner.__qualname__}".removeprefix("dllm.").removeprefix("eval.")
        for owner in owners()
        if owner not in FILLED
    }
    assert loose == MADE


FIELDS = [
    pytest.param(owner, name, id=f"{owner.__name__}.{name}")
    for owner in sorted(FILLED, key=lambda one: (one.__name__, one.__module__))
    for name in of_numbers(owner)
]


@pytest.mark.parametrize(("owner", "name"), FIELDS)
def test_every_number_of_a_filled_dataclass_has_a_range(owner: type, name: str) -> None:
    for kind, ranges in of_numbers(owner)[name]:
        assert ranges, f"{name}: {kind.__name__} of {owner.__name__} states no range"
        assert all(math.isfinite(one.least) and math.isfinite(one.most) for one in ranges)


def test_limits_of_a_sandbox_are_named() -> None:
    for name in of_numbers(Limits):
        values: list[Any] = [-1, 0, 2**60, float("nan"), True]
        for value in values:
            with pytest.raises(ValueError, match=f"{name}=.* must be "):
                Limits(**{name: value})


# Commands.

SMALL = ["-n", "16", "-b", "16"]
NEEDED = {
    "ablate": ["quickstart"],
    "advise": ["tiny"],
    "background-frequency": ["corpus.txt", "-o", "table.json"],
    "cache-error": ["--limit", "1", *SMALL, "-c", "prefix"],
    "chat": SMALL,
    "demo": ["--limit", "1"],
    "eval": ["--limit", "1", *SMALL],
    "generate": ["copy: tom, ann.", *SMALL],
    "serve": ["--port", "0", *SMALL],
    "trace": ["rows.jsonl"],
    "train-filter": ["-o", "f.safetensors", "--task", "arithmetic", "--count", "10", *SMALL],
    "train-context-filter": [
        *["-o", "f.safetensors", "--task", "arithmetic", "--count", "10"],
        *["--reference", "written", "--steps", "2", *SMALL],
    ],
    "tune": ["--budget", "1"],
    "verify": ["--limit", "1", *SMALL],
}


def numeric() -> list[tuple[str, str]]:
    """Returns the command and the name of each option that is a number."""
    found = []
    for name in SUMMARIES:
        command: Any = function_of(name)
        for parameter, hint in typing.get_type_hints(command, include_extras=True).items():
            if parameter != "return" and list(numbers(hint)) + _of_option(hint):
                named = [one for o in typing.get_args(hint)[1:] for one in o.param_decls or ()]
                found.append((name, named[0] if named else f"--{parameter.replace('_', '-')}"))
    return found


def _of_option(hint: Any) -> list[Any]:
    """Returns the numbers of an annotation that holds a typer option, such as int | None."""
    return list(numbers(typing.get_args(hint)[0])) if typing.get_args(hint) else []


def test_the_options_are_found() -> None:
    assert {("eval", "--limit"), ("ablate", "--problems"), ("verify", "--batch-size")} <= set(
        numeric()
    )


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the trace of one row."""
    file = tmp_path_factory.mktemp("traced") / "rows.jsonl"
    done = CliRunner().invoke(app, ["generate", "copy: tom, ann.", *SMALL, "--trace", str(file)])
    assert done.exit_code == 0, done.output
    return file


@pytest.mark.few(7)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("value", ["-1", str(10**30), "nan"])
@pytest.mark.parametrize(("command", "option"), numeric())
def test_a_number_of_a_command_is_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    traced: Path,
    command: str,
    option: str,
    value: str,
) -> None:
    """It ends at once with a reason, and with no traceback, hang or lack of memory."""
    if option == "--seed" and value == "-1":
        return  # which is one of the seeds
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_bytes(traced.read_bytes())
    more = ["--temperature", "1"] if option == "--samples" else []
    given = [command, *NEEDED[command], *more, option, value]
    done = CliRunner().invoke(app, given, input="hi\n")
    assert done.exit_code != 0, done.output
    assert isinstance(done.exception, ValueError | SystemExit), done.exception
    if isinstance(done.exception, ValueError):
        assert option.strip("-").replace("-", "_") in str(done.exception)
        assert value in str(done.exception) or "e+30" in str(done.exception)
    else:
        assert f"'{option}'" in done.output or "error: " in done.output
