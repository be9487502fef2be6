"""The model of a command: which one, what is merged into it, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.cli.options import yaml_value
from dllm.models.loading import load
from dllm.models.loading.weights import parse_device
from dllm.models.model import HostedModel


def load_model(
    model: str, dtype: str | None, place: Mapping[str, Any], speed: str | None = None
) -> HostedModel:
    """Returns the model of a command; `place` is what `placed` returns."""
    return load(model, dtype=dtype, speed=speed, **place)


def placed(
    device: str | None,
    device_map: str | None,
    revision: str | None,
    adapter: str | None,
    family: str | None = None,
) -> dict[str, Any]:
    """Returns the arguments of `load` that say which model goes where."""
    where = {"device": device, "device_map": devices(device_map)}
    return {**where, "revision": revision, "adapter": adapter, "family": family}


def devices(device_map: str | None) -> Any:
    """Returns a device map as `load` takes it; raises ValueError if it is none."""
    value = None if device_map is None else yaml_value(device_map, "--device-map")
    if value is not None and value != "auto" and not isinstance(value, Mapping):
        raise ValueError(
            f'--device-map {device_map!r} must be "auto" or a mapping of modules to devices, such '
            'as {"": cpu}'
        )
    for device in value.values() if isinstance(value, Mapping) else ():
        if not isinstance(device, int) and device != "disk":
            parse_device(device)
    return value
