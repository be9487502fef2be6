"""Saves a hosted model under the names of its family, rounded weights as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dllm.models.families import find_family
from dllm.models.loading.folder import CONFIG
from dllm.models.loading.in_parts import check_whole
from dllm.models.loading.quantised import KEY, described
from dllm.models.model import HostedModel
from dllm.models.speed.linear import parts_of
from dllm.models.speed.rounded import RoundedLinear


def save(model: HostedModel, folder: str | Path, *, max_shard_size: str = "5GB") -> None:
    """Writes weights under the family's own names, configuration and tokenizer to a folder.

    Rounded weights (`speed="int8"`, `"int4"`, `"fp8"`) are written as they are, and config.json
    says how they are rounded; `dllm.load` then needs no original. A tied head is not written.
    Weights beyond `max_shard_size` are split into files with an index. The folder is one that loads
    from its last moment on: config.json is written after all else.
    """
    if not model.config:
        raise ValueError(
            f"{model.name!r} has no config, so its family is unknown; give HostedModel the "
            "config.json that describes it"
        )
    check_whole(model)
    names = find_family(model.config).names
    parts = parts_of(model.network, model.network.named_parameters(), names.parts)
    weights = {
        piece.name: _own(weight.detach()[piece.where])
        for name, weight in parts
        for piece in names.pieces(name, weight.shape)
    }
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(f"{model.name!r} is offloaded; load it on one device to save it")
    from huggingface_hub import save_torch_state_dict  # start-up time: only saving needs it

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # of what it held: half of each would load
    save_torch_state_dict(weights, folder, max_shard_size=max_shard_size)
    if model.defaults:
        _write(folder / "generation_config.json", model.defaults)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    _write(folder / CONFIG, _config(model))


def _config(model: HostedModel) -> dict[str, Any]:
    """Returns a model's config.json, with the dtype and the rounding that its weights have now."""
    config = {name: value for name, value in model.config.items() if name != KEY}
    config["dtype" if "dtype" in config else "torch_dtype"] = str(model.dtype).removeprefix(
        "torch."
    )
    parts = model.network.modules()
    rounded = next((part for part in parts if isinstance(part, RoundedLinear)), None)
    return config if rounded is None else {**config, KEY: described(rounded.rounding)}


def _own(weight: Tensor) -> Tensor:
    """Returns a weight in memory of its own: of several in one only the first is written."""
    shares = weight.untyped_storage().nbytes() > weight.nbytes
    return weight.clone() if shares and not weight.is_meta else weight


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file that is there whole or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(dict(value), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
