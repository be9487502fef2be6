"""Recipes on the command line: `--recipe` of eval and serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.run.results import Result, read_lines
from dllm.models.digest import weights_digest
from dllm.recipes import Recipe
from dllm.recipes.recipe import FORMAT
from dllm.serve.service import Service
from dllm.settings import Settings


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return dllm.load("tiny")


@pytest.fixture
def recipe(model: dllm.HostedModel, tmp_path: Path) -> Path:
    """A recipe unlike all defaults, in a file."""
    settings = {"scheduler": "factor:0.3", "block_length": 8, "max_new_tokens": 32}
    path = tmp_path / "recipe.json"
    path.write_text(replace(made(model), settings=settings).to_json())
    return path


def made(model: dllm.HostedModel) -> Recipe:
    return Recipe(
        format=FORMAT,
        version=dllm.__version__,
        model="tiny",
        weights=weights_digest(model),
        task="arithmetic",
        settings={"scheduler": "threshold:0.97", "block_length": 8, "max_new_tokens": 32},
        cost="forwards",
        floor="accuracy >= 0.98 * stepwise",
        measured={"accuracy": 0.97},
        tuned={"problems": 512},
        confirmed={"problems": 1024},
        not_tried=(),
    )


def evaluated(folder: Path, *given: str) -> tuple[list[Result], str]:
    """Returns the results of `dllm eval` on a few problems, and what it printed."""
    command = ["eval", "--limit", "4", "--output", str(folder / "rows.jsonl"), *given]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return list(read_lines(folder / "rows.jsonl")), done.output


def started(monkeypatch: pytest.MonkeyPatch, *given: str) -> Settings:
    """Returns the settings that requests to `dllm serve` start from; it does not listen."""
    found: list[Service] = []
    monkeypatch.setattr("dllm.serve.run.run", lambda app, service, *rest: found.append(service))
    done = CliRunner().invoke(app, ["serve", "tiny", "--port", "0", *given])
    assert done.exit_code == 0, done.output
    settings = found[0].settings
    assert settings is not None
    return settings


def test_eval_runs_a_recipe(recipe: Path, tmp_path: Path) -> None:
    results, _ = evaluated(tmp_path, "--recipe", str(recipe))
    assert {one.settings["scheduler"]["factor"] for one in results} == {0.3}
    assert {one.settings["block_length"] for one in results} == {8}


def test_what_eval_is_given_wins_over_the_recipe(recipe: Path, tmp_path: Path) -> None:
    results, _ = evaluated(tmp_path, "--recipe", str(recipe), "--block-length", "16")
    assert {one.settings["block_length"] for one in results} == {16}
    assert {one.settings["scheduler"]["factor"] for one in results} == {0.3}


def test_eval_warns_of_a_task_that_the_recipe_is_not_of(
    model: dllm.HostedModel, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text(replace(made(model), task="gsm8k").to_json())
    _, said = evaluated(tmp_path, "--recipe", str(path))
    assert "was found for the task 'gsm8k', not 'arithmetic'" in said


@pytest.mark.parametrize("command", [["eval", "--limit", "4"], ["serve", "--port", "0"]])
def test_a_recipe_of_other_weights_is_refused(
    command: list[str], model: dllm.HostedModel, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text(replace(made(model), model="large", weights="0" * 16).to_json())
    given = [*command, "--recipe", str(path)]
    given += ["--output", str(tmp_path / "runs")] if command[0] == "eval" else []
    done = CliRunner().invoke(app, given)
    assert done.exit_code != 0
    assert "of the model 'large'" in f"{done.exception} {done.output}"


@pytest.mark.parametrize("command", ["eval", "serve"])
def test_a_config_and_a_recipe_are_too_much(command: str, recipe: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("scheduler: threshold\n")
    done = CliRunner().invoke(app, [command, "--config", str(config), "--recipe", str(recipe)])
    assert done.exit_code != 0
    assert "both say all settings" in f"{done.exception} {done.output}"


def test_serve_starts_requests_from_a_recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = started(monkeypatch, "--recipe", str(recipe))
    assert (settings.scheduler, settings.block_length) == ("factor:0.3", 8)
    wins = started(monkeypatch, "--recipe", str(recipe), "--block-length", "16")
    assert (wins.scheduler, wins.block_length) == ("factor:0.3", 16)
