"""Reading and writing the files of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm.models.errors import CheckpointError, first_few

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, read one at a time."""

    folder: Path
    shards: Mapping[str, Path]  # tensor name -> file

    def tensors(self, wanted: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """Yields (parameter, tensor) for `wanted` parameter -> tensor name, file by file."""
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for parameter, name in wanted.items():
            by_file.setdefault(self.shards[name], []).append((parameter, name))
        for path, pairs in by_file.items():
            with _open(path) as file:
                for parameter, name in pairs:
                    yield parameter, file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading it."""
        with _open(self.shards[name]) as file:
            return tuple(file.get_slice(name).get_shape())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Returns the tensors of a folder with one safetensors file or an index of shards."""
    if (folder / INDEX).exists():
        return Checkpoint(folder, _sharded(folder))
    path = folder / WEIGHTS
    if not path.exists():
        pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
        if pickles:
            raise CheckpointError(
                f"{folder} holds pickled weights ({first_few(pickles)}), which can run code when "
                "read: convert them with transformers' save_pretrained(..., "
                "safe_serialization=True) on a machine you trust"
            )
        raise CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    with _open(path) as file:
        return Checkpoint(folder, dict.fromkeys(file.keys(), path))


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """Returns the object in a JSON file, {} if it need not be there and is not."""
    if not path.exists():
        if required:
            raise CheckpointError(f"{path.parent} has no {path.name}: not a checkpoint folder")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def _sharded(folder: Path) -> dict[str, Path]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict):
        raise CheckpointError(f"{folder / INDEX} has no 'weight_map'")
    absent = sorted({name for name in index.values() if not (folder / name).exists()})
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of the files that {INDEX} names: {first_few(absent)}; "
            "the download is incomplete"
        )
    stored: dict[str, Path] = {}
    for name in sorted(set(index.values())):
        with _open(folder / name) as file:
            stored |= dict.fromkeys(file.keys(), folder / name)
    return stored


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is truncated or damaged, download it again"
        ) from None
