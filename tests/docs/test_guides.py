"""The guides for a cache, a family and a task: their examples keep what the rest of dllm keeps."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dllm
from dllm import cache
from dllm.cache import Cache
from dllm.cli.main import app
from dllm.eval.tasks import TASKS, Task
from dllm.eval.tasks.task import Problem
from dllm.models import NetworkConfig
from dllm.models.families import FAMILIES, Family
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from tests.support.laws import SLOTS, check_fixed_tokens, check_host_transfers
from tests.support.models import MODELS, family_model, golden_model, random_prompts
from tests.support.pages import DOCS, module_of, tables_of

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


@pytest.mark.few(2)
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


@pytest.mark.few(2)
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
    assert FAMILIES["FableForDiffusion"] is module.FAMILY
    assert set(module.tensors) == {
        module.FAMILY.names.of(name) for name, _ in module.model.network.named_parameters()
    }


# A task.


def test_the_tables_for_a_task_are_complete() -> None:
    assert names_in(TASK, "Problem") == [field.name for field in fields(Problem)]
    assert names_in(TASK, "Task") == [field.name for field in fields(Task)]


def test_the_guides_task_is_evaluated_by_name(folder: Path, tmp_path: Path) -> None:
    module_of(TASK, folder)
    assert "sorting" in TASKS
    output = tmp_path / "rows.jsonl"
    arguments = ["eval", "--task", "sorting", "-s", "threshold:0.9", "-s", "fixed_quota"]
    done = CliRunner(env={"COLUMNS": "120"}).invoke(
        app, [*arguments, "--limit", "12", "-n", "32", "-b", "16", "--output", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert "same_items" in done.output
    assert len(output.read_text(encoding="utf-8").splitlines()) == 24
    assert "digits to sort" in CliRunner().invoke(app, ["methods", "sorting"]).output
