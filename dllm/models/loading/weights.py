"""Where and in which dtype a network lives, and how a checkpoint's tensors get there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map  # type: ignore[import-untyped]
from accelerate.utils import get_balanced_memory  # type: ignore[import-untyped]
from torch import nn

from dllm.models.config import CheckpointError, NetworkConfig, printable
from dllm.models.families.family import TensorNames, Where
from dllm.models.layers import Block
from dllm.models.loading.files import PLAIN, StoredTensor, first_few, stream_tensors
from dllm.models.transformer import Transformer

logger = logging.getLogger(__name__)

Device = str | int | torch.device
Devices = Mapping[str, Device]  # module name -> device; "" for all that no other name covers
DeviceMap = str | Devices

_SHORT = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, long) for long, short in _SHORT.items() for name in (long, short)
}

# Rotary frequencies and positions, which `Transformer` computes; some checkpoints store them.
COMPUTED = ("rotary_emb.inv_freq", "position_ids")


# What decides between experts whose scores are close, whatever the dtype of the rest.
KEPT_IN_FLOAT32 = ("router.bias",)


def empty_network(config: NetworkConfig) -> Transformer:
    """Returns a network whose parameters have shapes but no memory.

    Not accelerate's init_empty_weights, which unties a tied head.
    """
    with torch.device("meta"):
        return Transformer(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Weights:
    """The tensors that a checkpoint stores for a network."""

    names: TensorNames
    stored: Mapping[str, StoredTensor]

    def check(self, network: Transformer) -> None:
        """Raises CheckpointError unless the stored tensors are exactly those of the network."""
        weights = dict(network.named_parameters())
        wanted = {
            stored: weights[name][where].shape
            for stored, (name, where) in self._places(network).items()
        }
        shapes = {name: tensor.shape for name, tensor in self.stored.items()}
        tied = {self._head} if network.config.tie_embeddings else set()
        missing = sorted(wanted.keys() - shapes.keys())
        self._check_kinds(wanted, missing)
        if missing:
            raise CheckpointError(
                f"{len(missing)} tensors are missing: {_list(missing, wanted)}"
                f"{_other_prefix(missing, shapes)}"
            )
        others = shapes.keys() - wanted.keys() - tied
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
        if tied & shapes.keys():
            self._check_tied_head()
        if unused:
            logger.warning(
                "%d tensors of parts that are not hosted are left out: %s",
                len(unused),
                printable(_list(unused, shapes)),
            )

    def _left_out(self, name: str) -> bool:
        left = self.names.left_out
        return name.startswith(left) or name.endswith(left)

    def _check_kinds(self, wanted: Collection[str], missing: list[str]) -> None:
        """Refuses weights that would need scales: a network's own, or others in their place."""
        scaled = [
            f"{name} is {tensor.kind}"
            for name, tensor in sorted(self.stored.items())
            if tensor.kind not in PLAIN and not name.endswith(COMPUTED)
            if missing or name in wanted
        ]
        if scaled:
            raise CheckpointError(
                f"the files hold quantised tensors: {first_few(scaled)}; use the original float "
                "checkpoint"
            )

    def fill(self, network: Transformer, dtype: torch.dtype, devices: Devices) -> None:
        """Puts every tensor into its place in the network."""
        places = self._places(network)
        for stored, tensor in stream_tensors(self.stored, places):
            name, where = places[stored]
            module, _, kind = name.rpartition(".")
            owner, device = network.get_submodule(module), device_of(name, devices)
            kept = torch.float32 if name.endswith(KEPT_IN_FLOAT32) else dtype
            if where:
                if getattr(owner, kind).is_meta:
                    whole = torch.empty(getattr(owner, kind).shape, dtype=kept, device=device)
                    setattr(owner, kind, nn.Parameter(whole, requires_grad=False))
                getattr(owner, kind)[where].copy_(tensor)
            else:
                # A copy even where nothing changes: what was read is a view of the file's pages.
                weight = nn.Parameter(tensor.to(device, kept, copy=True), requires_grad=False)
                setattr(owner, kind, weight)
        if network.config.tie_embeddings:
            network.head.weight = network.embedding.weight

    def _places(self, network: Transformer) -> dict[str, tuple[str, Where]]:
        """Returns for each tensor of a checkpoint the parameter that it is, or a part of."""
        return {
            piece.name: (name, piece.where)
            for name, weight in network.named_parameters()
            for piece in self.names.pieces(name, weight.shape)
        }

    @property
    def _head(self) -> str:
        return self.names.of("head.weight")

    def _check_tied_head(self) -> None:
        """Refuses a head that is stored beside a tied embedding and differs from it."""
        pair = (self._head, self.names.of("embedding.weight"))
        (_, first), (_, second) = stream_tensors(self.stored, pair)
        if first.shape != second.shape or not torch.equal(first, second):
            raise CheckpointError(
                f"config.json ties the head to the embedding, but {self._head} is stored and "
                "differs from it; untie them in config.json to use the stored head"
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
