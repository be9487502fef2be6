"""Loads a checkpoint, by hub id or from a folder, onto the project's own transformer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dllm.models.config import CheckpointError
from dllm.models.families import find_family
from dllm.models.loading.checkpoint import list_tensors, read_config, read_optional, stored_dtype
from dllm.models.loading.hub import find_folder
from dllm.models.loading.placement import DeviceMap, dispatch, parse_device, parse_dtype, place
from dllm.models.loading.spec import Settings, read_spec
from dllm.models.loading.tokenizer import load_tokenizer
from dllm.models.loading.weights import Weights, empty_network
from dllm.models.model import HostedModel
from dllm.models.speed.speed_up import parse_ways, speed_up


def load(  # noqa: PLR0913 one argument for each choice that loading leaves open
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    speed: str | Sequence[str] | None = None,
) -> HostedModel:
    """Returns a model from the embedded checkpoint ("tiny"), a folder or a hub id.

    `dtype` is a torch.dtype or its name; None and "auto" take the checkpoint's. `device` defaults
    to torch's default device; `device_map` ("auto", or module -> device) spreads the layers through
    accelerate instead. `speed` names ways of `dllm.speed_up`, such as "fused+captured". Raises
    CheckpointError, a ValueError, for anything that is missing, unknown, mis-shaped or damaged.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"give device={device!r} or device_map={device_map!r}, not both")
    where = parse_device(device)
    ways = parse_ways(speed)
    asked = None if dtype is None or dtype == "auto" else parse_dtype(dtype)
    folder = find_folder(name_or_path, revision)
    config = read_config(folder)
    family = find_family(config)
    generation = read_optional(folder / "generation_config.json")
    settings = Settings(config, generation, load_tokenizer(folder))
    try:
        network = empty_network(family.read_network(config))
        spec = read_spec(family, network.config, settings)
        weights = Weights(family.names, list_tensors(folder))
        weights.check(network)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    chosen = asked or own_dtype(config) or stored_dtype(weights.stored)
    devices = place(network, chosen, device_map or {"": where})
    weights.fill(network, chosen, devices)
    dispatch(network, devices)
    name = os.fspath(name_or_path)
    # The hub's cache keeps each commit in a folder of its name.
    commit = folder.name if folder.parent.name == "snapshots" else None
    held = (settings.tokenizer, generation, config)
    return speed_up(HostedModel(name, network, spec, *held, revision=commit), *ways)


def own_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """Returns the dtype that a config.json names; transformers 5 calls the key `dtype`."""
    name = config.get("dtype") or config.get("torch_dtype")
    try:
        return None if name is None else parse_dtype(name)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from None
