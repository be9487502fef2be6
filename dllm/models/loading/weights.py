"""Where and in which dtype a network lives, and how a checkpoint's tensors get there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dllm.models.config import CheckpointError, NetworkConfig, printable
from dllm.models.families.family import TensorNames, Where
from dllm.models.layers import Block
from dllm.models.loading.adapter import Adapter
from dllm.models.loading.empty import kept_in
from dllm.models.loading.files import (
    FLOATS,
    PLAIN,
    StoredTensor,
    first_few,
    stream_tensors,
    writer_of,
)
from dllm.models.loading.waiting import Waiting
from dllm.models.transformer import Transformer

logger = logging.getLogger(__name__)

Device = str | int | torch.device
Devices = Mapping[str, Device]  # module name -> device; "" for all that no other name covers
DeviceMap = str | Devices
Progress = Callable[[int, int], None]  # is called with the bytes that were read, and all of them

_SHORT = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, long) for long, short in _SHORT.items() for name in (long, short)
}

# Rotary frequencies and positions, which `Transformer` computes; some checkpoints store them.
COMPUTED = ("rotary_emb.inv_freq", "position_ids")


@dataclass(frozen=True)
class Weights:
    """The tensors that a checkpoint stores for a network."""

    names: TensorNames
    stored: Mapping[str, StoredTensor]
    adapter: Adapter | None = None  # merged into them on their way
    settle: Callable[[nn.Module], None] | None = None  # done to each layer that has all its own

    def check(self, network: Transformer, compare: bool = True) -> None:
        """Raises CheckpointError unless the stored tensors are exactly those of the network.

        One that is stored under several names must be the same under each, which `compare` reads.
        """
        weights = dict(network.named_parameters())
        wanted = {
            stored: weights[name][where].shape
            for stored, (name, where) in self._places(network).items()
        }
        whole = {
            stored: "I8" if weights[name].dtype == torch.int8 else "U8"
            for stored, (name, _) in self._places(network).items()
            if not weights[name].is_floating_point()
        }
        names, twins = self._stored_names(network.config)
        shapes = {first: self.stored[name].shape for first, name in names.items()}
        missing = sorted(wanted.keys() - shapes.keys())
        self._check_kinds({names[one] for one in wanted if one in names}, missing, whole)
        if missing:
            raise CheckpointError(
                f"{len(missing)} tensors are missing: {_list(missing, wanted)}"
                f"{_other_prefix(missing, shapes)}"
            )
        others = shapes.keys() - wanted.keys()
        unused = sorted(name for name in others if not name.endswith(COMPUTED))
        extra = [name for name in unused if not self._left_out(name)]
        if extra:
            raise CheckpointError(
                f"{len(extra)} tensors are not of this architecture: {_list(extra, shapes)}"
            )
        wrong = [name for name, shape in wanted.items() if shapes[name] != tuple(shape)]
        if wrong:
            raise CheckpointError(
                f"{len(wrong)} tensors have other shapes than config.json says: "
                f"{_list(wrong, shapes)}; expected {_list(wrong, wanted)}"
            )
        for pair in twins.items() if compare else ():
            self._check_twins(*pair)
        if self.adapter is not None:
            self.adapter.check(wanted)
        if unused:
            logger.warning(
                "%d tensors of parts that are not hosted are left out: %s",
                len(unused),
                printable(_list(unused, shapes)),
            )

    def _left_out(self, name: str) -> bool:
        left = self.names.left_out
        return name.startswith(left) or name.endswith(left)

    def _check_kinds(
        self, wanted: Collection[str], missing: list[str], whole: Mapping[str, str]
    ) -> None:
        """Refuses weights that would need scales: a network's own, or others in their place.

        `whole` names the integers that rounded layers want, with their kind.
        """
        scaled = [
            f"{name} is {tensor.kind}"
            for name, tensor in sorted(self.stored.items())
            if not name.endswith(COMPUTED)
            if tensor.kind not in ((whole[name],) if name in whole else PLAIN)
            if missing or name in wanted
        ]
        if scaled:
            writer = writer_of(self.stored)
            raise CheckpointError(
                f"the files hold quantised tensors{writer and f' of {writer}'}: "
                f"{first_few(scaled)}; weights are read as {', '.join(sorted(PLAIN))}: {FLOATS}"
            )

    def fill(
        self,
        network: Transformer,
        dtype: torch.dtype,
        devices: Devices,
        progress: Progress | None = None,
    ) -> None:
        """Puts every tensor into its place in the network."""
        names, _ = self._stored_names(network.config)
        places = {names[first]: (first, place) for first, place in self._places(network).items()}
        read, total = 0, sum(self.stored[name].num_bytes for name in places)
        layers = Waiting.of(network, [name for _, (name, _) in places.values()])
        for stored, tensor in stream_tensors(self.stored, places):
            if progress is not None:
                progress(read, total)
            read += self.stored[stored].num_bytes
            first, (name, where) = places[stored]
            if self.adapter is not None:
                tensor = self.adapter.merged(first, tensor)
            module, _, kind = name.rpartition(".")
            owner, device = network.get_submodule(module), device_of(name, devices)
            kept = kept_in(name, getattr(owner, kind), dtype)
            if where:
                if getattr(owner, kind).is_meta:
                    whole = torch.empty(getattr(owner, kind).shape, dtype=kept, device=device)
                    setattr(owner, kind, nn.Parameter(whole, requires_grad=False))
                getattr(owner, kind)[where].copy_(tensor)
            else:
                # A copy even where nothing changes: what was read is a view of the file's pages.
                weight = nn.Parameter(tensor.to(device, kept, copy=True), requires_grad=False)
                setattr(owner, kind, weight)
            layer = layers.filled(name)
            if layer is not None and self.settle is not None:
                self.settle(layer)
        if progress is not None:
            progress(read, total)
        if network.config.tie_embeddings:
            network.head.weight = network.embedding.weight

    def _places(self, network: Transformer) -> dict[str, tuple[str, Where]]:
        """Returns for each tensor of a checkpoint the parameter that it is, or a part of."""
        return {
            piece.name: (name, piece.where)
            for name, weight in network.named_parameters()
            for piece in self.names.pieces(name, weight.shape)
        }

    def _stored_names(self, config: NetworkConfig) -> tuple[dict[str, str], dict[str, str]]:
        """Returns under which name each tensor is stored, and further names of what has several.

        A tied head is the embedding, and two stacks may share their layers.
        """
        names: dict[str, str] = {}
        twins: dict[str, str] = {}
        first = {name: self.names.first_name(name, config) for name in self.stored}
        for name in sorted(self.stored, key=lambda name: name != first[name]):
            if names.setdefault(first[name], name) != name:
                twins[name] = names[first[name]]
        return names, twins

    def _check_twins(self, further: str, name: str) -> None:
        """Refuses a tensor that is stored under two names and differs."""
        tensors = dict(stream_tensors(self.stored, (further, name)))
        first, second = tensors[further], tensors[name]
        if first.shape != second.shape or not torch.equal(first, second):
            raise CheckpointError(
                f"config.json ties {further} to {name}, but both are stored and differ: untie "
                "them in config.json, or leave one of them out"
            )


def _other_prefix(missing: list[str], stored: Collection[str]) -> str:
    """Returns a hint where all that is missing is there under names with or without a prefix."""
    first = missing[0]
    for name in stored:
        if name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            if all(prefix + one in stored for one in missing):
                return (
                    f". They are stored with the prefix {prefix!r}, as a wrapper around the model "
                    "leaves it: save the model inside (of a PEFT adapter, after merge_and_unload())"
                )
        elif first.endswith(f".{name}"):
            prefix = first.removesuffix(name)
            if all(p.removeprefix(prefix) in stored for p in missing if p.startswith(prefix)):
                return (
                    f". They are stored without the prefix {prefix!r}, as a part of the model "
                    "leaves it: save the whole model, with its head"
                )
    return ""


def _list(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    return first_few(f"{name} {list(shapes[name])}" for name in names)


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
            return {"": _named(device_map)}
        # Start-up time: one device needs none of it.
        from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
        from accelerate.utils import get_balanced_memory  # type: ignore[import-untyped]

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


def _named(device_map: str) -> torch.device:
    """Returns the device that a device map is, for all of a network."""
    try:
        return parse_device(device_map)
    except ValueError as error:
        raise ValueError(
            f"device_map={device_map!r} must be 'auto' or a mapping, or a device for all: {error}"
        ) from None


def device_of(parameter: str, devices: Devices) -> torch.device:
    """Returns the device of a parameter: that of the longest module name that contains it."""
    inside = [name for name in devices if not name or f"{parameter}.".startswith(f"{name}.")]
    if not inside:
        raise ValueError(f"device_map has no device for {parameter}; add one for '' or its module")
    return torch.device(devices[max(inside, key=len)])


def dispatch(network: Transformer, devices: Devices) -> None:
    """Adds accelerate's hooks, which move activations from device to device, if there are many."""
    if len(set(devices.values())) > 1:
        from accelerate import dispatch_model  # start-up time: one device needs no hooks

        dispatch_model(network, dict(devices))
