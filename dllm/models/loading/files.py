"""The files of a checkpoint folder: JSON settings and safetensors, read tensor by tensor."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm.models.config import CheckpointError, printable
from dllm.models.memory import NotEnoughMemoryError, ran_out, readable
from dllm.reading import parse_json

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Stored element types that are plain weights, with their bytes; integers and 8-bit floats would
# need scales.
PLAIN = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
BYTES = {**PLAIN, "I8": 1, "U8": 1}  # and the integers of rounded weights

# Bytes of a file whose pages are in memory at a time, or one tensor. To map it anew costs the
# reading of its header, which has thousands of tensors where there are experts.
MAPPED = 2**28

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")


FLOATS = (
    "give the checkpoint that it was made from, with float weights in safetensors; speed='int8', "
    "'fp8' or 'int4' (--speed int8) then rounds them, and `dllm quantize` saves them so"
)
# Ends of names that quantised weights bring with them -> what writes them.
_WRITERS = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_packed": "compressed-tensors",
    "weight_scale": "8-bit floats",
    "weight_scale_inv": "8-bit floats",
    "biases": "MLX",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and how large, known without reading it."""

    file: Path
    shape: tuple[int, ...]
    kind: str  # of its elements, as safetensors names them

    @property
    def num_bytes(self) -> int:
        """The memory of a plain one, or of rounded weights."""
        return math.prod(self.shape) * BYTES[self.kind]


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object of a file that is there."""
    try:
        content = parse_json(path.read_bytes(), path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def check_files(folder: Path) -> None:
    """Refuses a folder without config.json, and one whose weights are not all that counts."""
    adapter = [name for name in ADAPTER if (folder / name).is_file()]
    whole = (folder / "config.json").is_file()
    if adapter:
        found = f"{folder} holds an adapter ({', '.join(adapter)})"
        if whole:
            raise CheckpointError(
                f"{found} beside a model, and which is meant is not known: move these files away "
                "to decode with the model alone, into a folder of their own to give as adapter="
            )
        raise CheckpointError(
            f"{found} and no model: load its base model, with this folder as adapter="
        )
    if whole:
        return
    check_gguf(folder)
    raise CheckpointError(f"{folder} has no config.json, so it is not a checkpoint folder")


def check_gguf(path: Path) -> None:
    """Refuses a GGUF file, and a folder that has some in the place of what is read here."""
    files = [path] if path.is_file() else sorted(path.glob("*"))
    found = [file.name for file in files if file.suffix.lower() == ".gguf"]
    if found:
        what = "is a GGUF file" if path.is_file() else "holds GGUF files"
        raise CheckpointError(
            f"{path} {what} ({first_few(found)}), which is not read here, as its weights are "
            f"quantised: {FLOATS}"
        )


def writer_of(names: Iterable[str]) -> str:
    """Returns what quantised weights by the names of their tensors, "" where none tells."""
    ends = {name.rpartition(".")[2] for name in names}
    found = dict.fromkeys(writer for end, writer in _WRITERS.items() if end in ends)
    return " and ".join(found)


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns every tensor of a folder by name, from the headers of its files alone.

    Of a tensor that several files hold, the one in the file that the index names is taken.
    """
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
        for name, tensor in read_header(file).items():
            if weight_map.get(name, file.name) == file.name:
                _add(stored, name, tensor)
            elif name in weight_map:
                logger.warning(
                    "%s",
                    printable(
                        f"{file} holds {name} too, which {INDEX} takes from "
                        f"{weight_map[name]}: the index wins"
                    ),
                )
    lost = [name for name, file in weight_map.items() if name not in stored]
    if lost:
        raise CheckpointError(
            f"{INDEX} in {folder} names tensors that no file holds: {first_few(sorted(lost))}"
        )
    return stored


def _add(stored: dict[str, StoredTensor], name: str, tensor: StoredTensor) -> None:
    """Adds a tensor; one that the index does not know must be in one file alone."""
    if name in stored:
        raise CheckpointError(
            f"{name} is in {stored[name].file} and in {tensor.file.name}, and {INDEX} does not say "
            "which counts: name its file there"
        )
    stored[name] = tensor


def stream_tensors(
    stored: Mapping[str, StoredTensor], names: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the named tensors on the CPU, one at a time, those of a file together.

    They are views of the file's pages: copy them before the file can change, and drop them, or all
    pages that were read since the file was last mapped stay in memory.
    """
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(stored[name].file, []).append(name)
    for file, inside in by_file.items():
        for part in _parts(stored, inside):
            with safe_open(file, framework="pt") as handle:
                for name in part:
                    yield name, handle.get_tensor(name)


def _parts(stored: Mapping[str, StoredTensor], names: Iterable[str]) -> Iterator[list[str]]:
    """Yields names of tensors that together have up to `MAPPED` bytes, or one that has more."""
    part: list[str] = []
    size = 0
    for name in names:
        if part and size + stored[name].num_bytes > MAPPED:
            yield part
            part, size = [], 0
        part.append(name)
        size += stored[name].num_bytes
    yield part


def _read_index(folder: Path) -> dict[str, str]:
    """Returns tensor name -> file name; empty when the weights are one file."""
    if (folder / WEIGHTS).is_file():
        if (folder / INDEX).is_file():
            logger.warning(
                "%s has %s and %s: the one file is loaded, as transformers does, and what the "
                "index names is not; remove one of them",
                folder,
                WEIGHTS,
                INDEX,
            )
        return {}
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map")
    wrong = [file for file in weight_map.values() if not isinstance(file, str)]
    if wrong:
        raise CheckpointError(f"{folder / INDEX} names {wrong[0]!r}, expected the name of a file")
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
        check_gguf(folder)
        return CheckpointError(f"{folder} has neither {WEIGHTS} nor {INDEX}")
    return CheckpointError(
        f"{folder} has its weights as pickle ({first_few(pickles)}), which can run code when it is "
        "read. Convert it once, where you trust it: "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), "
        f'"{WEIGHTS}", metadata={{"format": "pt"}})'
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Returns every tensor of a file by name; raises CheckpointError for a damaged file."""
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
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise NotEnoughMemoryError(
            f"{file} of {readable(file.stat().st_size)} cannot be mapped, for the process may have "
            f"no more memory ({error}): raise its limit (`ulimit -v`), or save the checkpoint in "
            "more and smaller files"
        ) from error
    return {name: StoredTensor(file, shape, kinds[name]) for name, shape in shapes.items()}


def first_few(lines: Iterable[str], limit: int = 5) -> str:
    """Returns the first lines for a message, and how many more there are."""
    lines = list(lines)
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "; ".join(lines[:limit] + more)
