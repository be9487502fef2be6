"""Recipes: what is read, of which model, and what is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dllm
from dllm.models.digest import weights_digest
from dllm.recipes import Recipe, read_recipe, recipe_settings

TOM = "tom has 53 pens. tom loses 3. how many pens does tom have?"


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return dllm.load("tiny")


@pytest.fixture
def recipe(model: dllm.HostedModel) -> Recipe:
    return Recipe(
        format=1,
        version=dllm.__version__,
        model="tiny",
        weights=weights_digest(model),
        task="arithmetic",
        settings={"scheduler": "fixed_quota", "max_new_tokens": 32, "block_length": 8},
        cost="forwards",
        floor="accuracy >= 0.98 * stepwise",
        measured={"accuracy": 0.97},
        tuned={"problems": 512},
        confirmed={"problems": 1024},
        not_tried=("caches: dual",),
    )


def test_a_file_gives_the_same_recipe(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe
    assert read_recipe(json.loads(recipe.to_json())) == recipe


def test_generate_takes_a_recipe_and_what_is_given_wins(
    model: dllm.HostedModel, recipe: Recipe
) -> None:
    by_recipe = dllm.generate(model, TOM, recipe=recipe)
    by_name = dllm.generate(model, TOM, **recipe.settings)
    assert by_recipe.sequences == by_name.sequences
    assert by_recipe.metrics.num_forwards == by_name.metrics.num_forwards
    faster = dllm.generate(model, TOM, recipe=recipe, scheduler="threshold:0.5")
    assert faster.metrics.num_forwards < by_recipe.metrics.num_forwards


def test_settings_and_a_recipe_are_too_much(model: dllm.HostedModel, recipe: Recipe) -> None:
    with pytest.raises(TypeError, match="settings and recipe"):
        dllm.generate(model, TOM, dllm.Settings(), recipe=recipe)


def test_a_recipe_of_another_model_is_refused_by_name(
    model: dllm.HostedModel, recipe: Recipe
) -> None:
    other = replace(recipe, model="large", weights="0" * 16)
    with pytest.raises(ValueError, match=r"of the model 'large'.*not of 'tiny'"):
        recipe_settings(other, model)


def test_a_recipe_of_another_version_is_a_warning(
    model: dllm.HostedModel, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        recipe_settings(replace(recipe, version="0.0.1"), model)
    assert "found with dllm 0.0.1" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format=2"),
        ({"floor": 3}, "floor=3"),
        ({"settings": {"schedulers": "x"}}, "schedulers"),
        ({"more": 1}, "no recipe"),
        ({"task": None}, "task=None"),
    ],
)
def test_a_wrong_file_names_itself_and_the_field(
    recipe: Recipe, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**json.loads(recipe.to_json()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(path)
    assert "wrong.json" in str(caught.value)


def test_what_lacks_a_field_says_which(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks confirmed, cost, floor"):
        read_recipe(tmp_path / "empty.json")


def test_a_file_that_there_is_not_says_what_there_may_be() -> None:
    with pytest.raises(ValueError, match=r"'tinyfast' is no file.*own"):
        read_recipe("tinyfast")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_recipe(tmp_path)


def test_a_model_without_one_says_so(model: dllm.HostedModel) -> None:
    with pytest.raises(ValueError, match="comes with no recipe"):
        read_recipe("own", replace(model, recipe=None))


def test_a_recipe_in_the_folder_comes_with_the_model(
    model: dllm.HostedModel, recipe: Recipe, tmp_path: Path
) -> None:
    dllm.save(model, tmp_path)
    assert dllm.load(tmp_path).recipe is None
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    loaded = dllm.load(tmp_path)
    assert loaded.recipe == json.loads(recipe.to_json())
    out = dllm.generate(loaded, TOM, recipe="own")
    assert out.sequences == dllm.generate(model, TOM, **recipe.settings).sequences
