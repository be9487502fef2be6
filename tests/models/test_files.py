"""JSON from files of others: what is refused, and that it is refused everywhere."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm.models import CheckpointError, load
from dllm.models.loading.files import INDEX, WEIGHTS, list_tensors
from dllm.reading import MOST_NESTING, parse_json
from tests.support import GOLDEN

DREAM = GOLDEN / "models" / "dream_gqa"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied = tmp_path / "dream"
    shutil.copytree(DREAM, copied)
    return copied


def nested(depth: int, pair: str = "[]") -> str:
    return pair[0] * depth + pair[1] * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("", "config.json is not valid JSON"),
        (b'{"a": "\xff"}', "config.json is not valid JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
        ('{"b": [{"a": 1, "c": 2, "a": 1}]}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        (nested(MOST_NESTING + 2), "config.json nests values deeper than 100"),
        (nested(100_000), "config.json nests values deeper than 100"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "config.json nests values deeper than 100"),
        ("9" * 10_000, "config.json is not valid JSON"),
    ],
)
def test_json_that_is_refused(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text, "config.json")


def test_json_that_is_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, "x"]}', "here") == {"a": [1, 2.5, None, "x"]}
    assert parse_json(nested(MOST_NESTING), "here") == json.loads(nested(MOST_NESTING))
    assert math.isnan(parse_json("[NaN]", "here", allow_nan=True)[0])


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", INDEX])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("{", '{"x": 1, "x": 2, ', 1), "'x' stands twice"),
        (lambda text: text.replace("{", '{"x": NaN, ', 1), "NaN is no JSON number"),
        (
            lambda text: text.replace("{", '{"x": ' + nested(100_000) + ", ", 1),
            "nests values deeper",
        ),
    ],
)
def test_every_file_of_a_checkpoint(
    folder: Path, name: str, damage: Callable[[str], str], message: str
) -> None:
    if name == INDEX:
        split_in_two(folder)
    (folder / name).write_text(damage((folder / name).read_text()))
    with pytest.raises(CheckpointError, match=rf"{name}.*{message}"):
        load(folder)


def split_in_two(folder: Path) -> list[str]:
    """Writes the weights as two files with an index; returns the names of the first."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number}-of-2.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return names[::2]


@pytest.mark.parametrize("number", [1, 2])
def test_of_a_tensor_in_two_files_the_index_decides(
    folder: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(folder).network.embedding.weight
    name = "model.embed_tokens.weight"
    first = split_in_two(folder)
    owner = 1 if name in first else 2
    other = folder / f"model-{3 - owner}-of-2.safetensors"
    wrong = torch.zeros_like(expected)
    save_file({**load_file(other), name: wrong}, other)
    if number == 2:  # the index now names the other file
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][name] = other.name
        (folder / INDEX).write_text(json.dumps(index))
    loaded = load(folder).network.embedding.weight
    assert torch.equal(loaded, wrong if number == 2 else expected)
    assert f"holds {name} too" in caplog.text
    assert "the index wins" in caplog.text


def test_a_tensor_in_two_files_that_the_index_does_not_know(folder: Path) -> None:
    split_in_two(folder)
    for number in (1, 2):
        file = folder / f"model-{number}-of-2.safetensors"
        save_file({**load_file(file), "extra": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=rf"extra is in .*{INDEX} does not say which counts"):
        list_tensors(folder)


def test_one_file_beside_an_index(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / INDEX).write_text('{"weight_map": {"a": "b.safetensors"}}')
    load(folder)
    assert f"{WEIGHTS} and {INDEX}: the one file is loaded" in caplog.text


def test_an_index_that_names_no_file(folder: Path) -> None:
    split_in_two(folder)
    (folder / INDEX).write_text('{"weight_map": {"a": 7}}')
    with pytest.raises(CheckpointError, match="names 7, expected the name of a file"):
        load(folder)
