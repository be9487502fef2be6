"""Writes a model as a checkpoint folder of its own family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from dllm.models.families import find_family
from dllm.models.model import HostedModel
from dllm.models.speed.linear import is_narrow, parts_of


def save(model: HostedModel, folder: str | Path, *, max_shard_size: str = "5GB") -> None:
    """Writes weights under the family's own names, configuration and tokenizer to a folder.

    A tied head is not written. Weights beyond `max_shard_size` are split into files with an index.
    """
    if not model.config:
        raise ValueError(
            f"{model.name!r} has no config, so its family is unknown; give HostedModel the "
            "config.json that describes it"
        )
    if is_narrow(model.network):
        raise ValueError(f"{model.name!r} has weights rounded to 8 bits; load it again to save it")
    names = find_family(model.config).names
    parts = parts_of(model.network, model.network.named_parameters())
    weights = {names.of(name): _own(weight.detach()) for name, weight in parts}
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(f"{model.name!r} is offloaded; load it on one device to save it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(weights, folder, max_shard_size=max_shard_size)
    key = "dtype" if "dtype" in model.config else "torch_dtype"
    _write(folder / "config.json", {**model.config, key: str(model.dtype).removeprefix("torch.")})
    if model.defaults:
        _write(folder / "generation_config.json", model.defaults)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _own(weight: Tensor) -> Tensor:
    """Returns a weight in memory of its own: of several in one only the first is written."""
    shares = weight.untyped_storage().nbytes() > weight.nbytes
    return weight.clone() if shares and not weight.is_meta else weight


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=1) + "\n", encoding="utf-8")
