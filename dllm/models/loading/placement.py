"""Where and in which dtype a network lives: one device, or a map of accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map  # type: ignore[import-untyped]
from accelerate.utils import get_balanced_memory  # type: ignore[import-untyped]

from dllm.models.layers import Block
from dllm.models.transformer import Transformer

Device = str | int | torch.device
Devices = Mapping[str, Device]  # module name -> device; "" for all that no other name covers
DeviceMap = str | Devices

_SHORT = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, long) for long, short in _SHORT.items() for name in (long, short)
}


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Returns a floating dtype from itself or its name."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not supported; known: auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def parse_device(name: torch.device | str | None) -> torch.device:
    """Returns a device by its name, or torch's default one; ValueError if it is not there."""
    try:
        device = torch.get_default_device() if name is None else torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device={name!r} is not known to torch: cpu, cuda, cuda:1, ..."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={str(name)!r}: torch finds {torch.cuda.device_count()} CUDA devices; "
            "`dllm doctor` looks for the reason, and 'cpu' is always there"
        )
    return device


def place(network: Transformer, dtype: torch.dtype, device_map: DeviceMap) -> Devices:
    """Returns the device of every module of a network that may still have no memory."""
    if isinstance(device_map, str):
        if device_map != "auto":
            raise ValueError(f"device_map={device_map!r} must be 'auto' or a mapping")
        whole = [Block.__name__]  # so that a residual does not cross devices
        memory = get_balanced_memory(network, dtype=dtype, no_split_module_classes=whole)
        inferred: dict[str, Any] = infer_auto_device_map(network, memory, whole, dtype=dtype)
        device_map = inferred
    on_disk = [name for name, device in device_map.items() if device == "disk"]
    if on_disk:
        raise ValueError(
            f"device_map puts {', '.join(on_disk)} on disk, which is not supported: more memory "
            "or a smaller dtype is needed"
        )
    for parameter, _ in network.named_parameters():
        device_of(parameter, device_map)
    return device_map


def device_of(parameter: str, devices: Devices) -> torch.device:
    """Returns the device of a parameter: that of the longest module name that contains it."""
    inside = [name for name in devices if not name or f"{parameter}.".startswith(f"{name}.")]
    if not inside:
        raise ValueError(f"device_map has no device for {parameter}; add one for '' or its module")
    return torch.device(devices[max(inside, key=len)])


def dispatch(network: Transformer, devices: Devices) -> None:
    """Adds accelerate's hooks, which move activations from device to device, if there are many."""
    if len(set(devices.values())) > 1:
        dispatch_model(network, dict(devices))
