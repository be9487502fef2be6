"""The recipe that comes with "tiny": what it is of, and that it does what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import dllm
from dllm.cli.main import app
from dllm.eval.run.results import read_lines
from dllm.models.digest import weights_digest
from dllm.recipes import Recipe, read_recipe
from dllm.settings import resolve

CHECKPOINT = Path(dllm.__file__).parent / "tiny" / "checkpoint"


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return dllm.load("tiny")


@pytest.fixture(scope="module")
def own(model: dllm.HostedModel) -> Recipe:
    return read_recipe("own", model)


def test_it_is_of_the_weights_that_are_shipped(model: dllm.HostedModel, own: Recipe) -> None:
    own.check(model)
    assert own.weights == weights_digest(model)
    assert (own.model, own.task, own.version) == ("tiny", "arithmetic", dllm.__version__)
    assert own.confirmed["passed"] is True
    assert own.measured["problems"] >= 500
    low, high = own.measured["accuracy_interval"]
    assert low <= own.measured["accuracy"] <= high
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 16e6


def test_it_is_never_applied_unasked(model: dllm.HostedModel, own: Recipe) -> None:
    usual = resolve(model.defaults, None, {})
    assert (usual.scheduler, usual.block_length) == ("threshold", 16)
    prompt = "tom has 53 pens. tom loses 3. how many pens does tom have?"
    plain, asked = (dllm.generate(model, prompt, recipe=recipe) for recipe in (None, "own"))
    assert plain.metrics.num_forwards == dllm.generate(model, prompt, usual).metrics.num_forwards
    named = dllm.generate(model, prompt, **own.settings)
    assert asked.sequences == named.sequences
    assert asked.metrics.num_forwards == named.metrics.num_forwards


def test_eval_finds_what_it_says(own: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    command = ["eval", "--recipe", "own", "--limit", "50", "--output", str(file)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    results = list(read_lines(file))
    assert len(results) == 50
    assert sum(bool(one.correct) for one in results) >= 45
    cost = sum(one.row_forwards for one in results) / 50
    assert cost == pytest.approx(own.measured["cost"], rel=0.1)
