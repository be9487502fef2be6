"""The guides for a cache, a family and a task: their examples keep what the rest of dllm keeps."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dllm
from dllm import cache, registry
from dllm.cache import Cache
from dllm.cli.main import app
from dllm.eval.tasks import TASKS, Task, find_task
from dllm.eval.tasks.task import Problem
from dllm.models import NetworkConfig, families
from dllm.models.families import FAMILIES, Family
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from tests.support.commands import Inside, runner
from tests.support.laws import SLOTS, check_fixed_tokens, check_host_transfers
from tests.support.models import MODELS, family_model, golden_model, random_prompts
from tests.support.pages import DOCS, module_of, tables_of


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    return runner(monkeypatch, capsys)


CACHE, FAMILY, TASK = (DOCS / "guides" / f"add_a_{part}.md" for part in ("cache", "family", "task"))


def names_in(page: Path, heading: str) -> list[str]:
    """Returns the first column of the table below a heading."""
    text = page.read_text(encoding="utf-8").split(f"# {heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


# A cache.


@pytest.fixture
def lookback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[Cache]:
    """The guide's cache, found by name as if its file were in cache/."""
    monkeypatch.setattr(cache, "__path__", [*cache.__path__, str(folder)])
    monkeypatch.delattr(cache, "lookback", raising=False)
    for name in ("fable", "sorting", "spaced_margin"):  # beside it, and no caches
        (folder / f"{name}.py").unlink()
    return cache.registry.get("lookback")


def decoded(model: Any, prompts: Any, policy: Any, **options: Any) -> tuple[tuple[int, ...], ...]:
    options = {**SLOTS, "scheduler": "threshold:0.3", **options}
    return dllm.generate(model, prompts, cache=policy, **options).sequences


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [*MODELS, "sdar", "fast_dllm_v2"])
def test_lookback_lies_between_prefix_and_none(name: str, lookback: type[Cache]) -> None:
    model = golden_model(name) if name in MODELS else family_model(name)
    prompts = random_prompts(3)
    assert decoded(model, prompts, "lookback:1000") == decoded(model, prompts, "none")
    assert decoded(model, prompts, "lookback:0") == decoded(model, prompts, "prefix")
    fed = [
        dllm.generate(model, prompts, cache=policy, scheduler="fixed_quota", **SLOTS).metrics
        for policy in ("prefix", "lookback:1", "lookback:2", "none")
    ]
    columns = [metrics.tokens_fed for metrics in fed]
    assert columns[0] < columns[1] < columns[2] < columns[3]


def test_ripple_may_feed_everything(folder: Path) -> None:
    ripple = module_of(CACHE, folder).Ripple
    for name in MODELS:
        model, prompts = golden_model(name), random_prompts(4)
        assert decoded(model, prompts, ripple(1000)) == decoded(model, prompts, "none")


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["Lookback", "Ripple"])
@pytest.mark.parametrize("scheduler", ["threshold:0.3", "multi_block:0.4,blocks=3"])
def test_the_guides_caches_keep_the_laws(
    name: str, scheduler: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = getattr(module_of(CACHE, folder), name)()
    for model in (golden_model("llada_gqa"), golden_model("dream_gqa")):
        prompts = random_prompts(3)
        alone = tuple(decoded(model, [p], policy, scheduler=scheduler)[0] for p in prompts)
        assert decoded(model, prompts, policy, scheduler=scheduler) == alone
    check_fixed_tokens(scheduler, policy)
    check_host_transfers(scheduler, policy, monkeypatch)


@pytest.mark.usefixtures("lookback")
def test_lookback_is_evaluated_by_name() -> None:
    arguments = ["eval", "-c", "lookback:2", "--limit", "3", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert '"cache": "lookback:2"' in done.stdout
    with pytest.raises(ValueError, match="blocks=-1 must be"):
        cache.registry.create("lookback:-1")


def test_the_tables_for_a_cache_name_what_exists(tiny: dllm.HostedModel) -> None:
    seen: list[tuple[Canvas, Progress]] = []

    class Watching(type(cache.registry.create("none"))):  # type: ignore[misc]
        def plan(self, canvas: Canvas, progress: Progress, spec: dllm.ModelSpec) -> Any:
            seen.append((canvas, progress))
            return super().plan(canvas, progress, spec)

    dllm.generate(tiny, ["sam has 9 cards."], cache=Watching(), max_new_tokens=16, block_length=16)
    canvas, progress = seen[0]
    letters = {"B": 1, "C": canvas.layout.num_stored}
    for name, shape in tables_of(CACHE)["Canvas"].items():
        value = getattr(canvas, name)
        axes, _, kind = shape.partition(") ")
        assert [letters[axis] for axis in re.findall("[A-Z]", axes)] == list(value.shape), name
        assert kind in str(value.dtype), name
    assert all(hasattr(progress, name) for name in names_in(CACHE, "Progress"))
    base = importlib.import_module("dllm.cache.passes")
    assert all(callable(getattr(base, name)) for name in names_in(CACHE, "Ways to a plan"))
    declared = set(Cache.__annotations__) | {"presets"}
    assert declared == set(names_in(CACHE, "What a cache declares"))


# A family.


def test_the_tables_for_a_family_are_complete() -> None:
    assert names_in(FAMILY, "Family") == [field.name for field in fields(Family)]
    switches = {field.name for field in fields(NetworkConfig)}
    assert set(names_in(FAMILY, "NetworkConfig")) <= switches


def test_the_guides_family_is_found_by_its_architecture(folder: Path) -> None:
    module = module_of(FAMILY, folder)
    family = importlib.import_module("fable").FAMILY
    assert FAMILIES["FableForDiffusion"] is family
    assert set(module.tensors) == {
        family.names.of(name) for name, _ in module.model.network.named_parameters()
    }


# A task.


def test_the_tables_for_a_task_are_complete() -> None:
    assert names_in(TASK, "Problem") == [field.name for field in fields(Problem)]
    assert names_in(TASK, "Task") == [field.name for field in fields(Task)]


@pytest.mark.slow
def test_the_guides_task_is_evaluated_by_name(folder: Path, tmp_path: Path) -> None:
    TASKS["sorting"] = module_of(TASK, folder).TASK  # as if its file were in eval/tasks
    output = tmp_path / "rows.jsonl"
    arguments = ["eval", "--task", "sorting", "-s", "threshold:0.9", "-s", "fixed_quota"]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(
        app, [*arguments, "--limit", "12", "-n", "32", "-b", "16", "--output", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert "same_items" in done.output
    assert len(output.read_text(encoding="utf-8").splitlines()) == 24
    assert "digits to sort" in CliRunner().invoke(app, ["methods", "sorting"]).output


# Own classes, with the package as it is.


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def runs_of(path: Path) -> set[str]:
    return {json.loads(line)["run"] for line in path.read_text(encoding="utf-8").splitlines()}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["sorting.py:TASK", "sorting:TASK"])
def test_a_task_is_named_by_its_place(name: str, here: Path, inside: Inside) -> None:
    assert "sorting" not in TASKS
    output = here / "rows.jsonl"
    done = inside("eval", "--task", name, "--limit", "4", "--output", str(output), "--json")
    assert done.returncode == 0, done.stderr
    assert len(output.read_text(encoding="utf-8").splitlines()) == 4
    assert inside("train-filter", "--task", "sorting", "-o", "x.safetensors").returncode == 2
    (here / "mine.yaml").write_text(
        f"about: own\nsettings:\n- {{name: one, task: '{name}', max_new_tokens: 16}}\n",
        encoding="utf-8",
    )
    done = inside("ablate", "mine.yaml", "--limit", "2", "--output", "runs")
    assert done.returncode == 0, done.stderr


def test_an_edited_task_is_another_run(here: Path, inside: Inside) -> None:
    file, output = here / "sorting.py", here / "rows.jsonl"
    command = ["eval", "--task", "sorting.py:TASK", "--limit", "3", "--output", str(output)]
    assert inside(*command).returncode == 0
    first = runs_of(output)
    assert inside(*command).returncode == 0
    assert runs_of(output) == first
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("all(details.values())", "any(details.values())"), "utf-8")
    assert inside(*command).returncode == 0
    assert len(runs_of(output)) == 2


def test_what_is_no_task_is_told(here: Path, inside: Inside) -> None:
    for name, says in [
        ("sorting.py:judge", "must be a dllm.eval.tasks.Task"),
        ("sorting.py:DEFAULT_NUM", "must be a dllm.eval.tasks.Task"),
        ("sorting.py:NONE", "'sorting.py' has no 'NONE'"),
        ("gone.py:TASK", "gone.py: no such file"),
        ("gone:TASK", "unknown task 'gone:TASK'"),
    ]:
        done = inside("eval", "--task", name, "--limit", "1")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert says in done.stderr


class Declared:
    """An entry point, as an installed package has one."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def load(self) -> Any:
        return self.value


def test_a_package_declares_tasks_and_families(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fable, sorting = importlib.import_module("fable"), importlib.import_module("sorting")
    entries = {
        "dllm.tasks": Declared("digits", sorting.TASK),
        "dllm.families": Declared("FableForDiffusion", fable.FAMILY),
    }
    monkeypatch.setattr(
        registry, "declared", lambda group: {e.name: e for g, e in entries.items() if g == group}
    )
    for module in (dllm.eval.tasks, families):
        name = "declared_elsewhere" if module is dllm.eval.tasks else "declared"
        monkeypatch.setattr(module, name, registry.declared)
    assert find_task("digits") is sorting.TASK
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        find_task("digit")
    assert families.find_family({"architectures": ["FableForDiffusion"]}) is fable.FAMILY


def test_a_family_is_named_by_its_place(folder: Path, here: Path, inside: Inside) -> None:
    checkpoint = str(module_of(FAMILY, folder).folder / "again")
    FAMILIES.pop("FableForDiffusion")
    with pytest.raises(ValueError, match="unknown architecture 'FableForDiffusion'"):
        dllm.load(checkpoint)
    model = dllm.load(checkpoint, family=f"{folder}/fable.py:FAMILY")
    dllm.save(model, here / "saved")
    FAMILIES.pop("FableForDiffusion")
    done = inside("eval", "--model", checkpoint, "--family", "fable:FAMILY", "--limit", "1")
    assert "no tokenizer" in done.stderr  # it was loaded, and cannot read texts
    wrong: list[tuple[Family | str, str]] = [
        ("fable:NetworkConfig", "is no dllm.models.families.Family"),
        ("gone:FAMILY", "is no dllm.models.families.Family"),
        (replace(FAMILIES["DreamModel"]), "which dllm hosts itself"),
    ]
    for given, says in wrong:
        with pytest.raises(ValueError, match=says):
            dllm.load(checkpoint, family=given)
