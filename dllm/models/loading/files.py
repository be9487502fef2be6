"""The files of a checkpoint folder: JSON settings and safetensors, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm.models.config import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Stored element types that are plain weights; integers and 8-bit floats would need scales.
PLAIN = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and how large, known without reading it."""

    file: Path
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file that is there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns every tensor of a folder by name, from the headers of its files alone."""
    weight_map = _read_index(folder)
    files = sorted({folder / name for name in weight_map.values()}) or [folder / WEIGHTS]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {len(absent)} of {len(files)} weight files that {INDEX} names: "
            f"{first_few(absent)}; download them again"
        )
    stored: dict[str, StoredTensor] = {}
    for file in files:
        stored.update(_read_header(file))
    lost = [name for name, file in weight_map.items() if name not in stored]
    if lost:
        raise CheckpointError(
            f"{INDEX} in {folder} names tensors that no file holds: {first_few(sorted(lost))}"
        )
    return stored


def stream_tensors(
    stored: Mapping[str, StoredTensor], names: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the named tensors on the CPU, one at a time, each file opened once.

    They are views of the file's pages: copy them before the file can change.
    """
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(stored[name].file, []).append(name)
    for file, inside in by_file.items():
        with safe_open(file, framework="pt") as handle:
            for name in inside:
                yield name, handle.get_tensor(name)


def _read_index(folder: Path) -> dict[str, str]:
    """Returns tensor name -> file name; empty when the weights are one file."""
    if (folder / WEIGHTS).is_file():
        return {}
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map")
    outside = [name for name in weight_map.values() if Path(name).name != name]
    if outside:
        raise CheckpointError(
            f"{folder / INDEX} names files outside its folder: {first_few(outside)}"
        )
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    patterns = ("*.bin", "*.pt", "*.pth")
    pickles = sorted(path.name for pattern in patterns for path in folder.glob(pattern))
    if not pickles:
        return CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    return CheckpointError(
        f"{folder} has its weights as pickle ({first_few(pickles)}), which can run code when it is "
        "read. Convert it once, where you trust it: "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), "
        f'"{WEIGHTS}", metadata={{"format": "pt"}})'
    )


def _read_header(file: Path) -> dict[str, StoredTensor]:
    with file.open("rb") as raw:
        if raw.read(15) == b"version https:/":
            raise CheckpointError(
                f"{file} is a Git LFS pointer; fetch the file with `git lfs pull`"
            )
    try:
        with safe_open(file, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            kinds = {name: part.get_dtype() for name, part in slices.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        size = file.stat().st_size
        raise CheckpointError(
            f"{file} is truncated or corrupt ({size} bytes, {error}); download it again"
        ) from error
    scaled = [f"{name} is {kind}" for name, kind in kinds.items() if kind not in PLAIN]
    if scaled:
        raise CheckpointError(f"{file} holds quantised tensors: {first_few(scaled)}")
    return {name: StoredTensor(file, shape) for name, shape in shapes.items()}


def first_few(lines: Iterable[str], limit: int = 5) -> str:
    """Returns the first lines for a message, and how many more there are."""
    lines = list(lines)
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "; ".join(lines[:limit] + more)
