"""The same passes, faster: joined weights, compiled layers, captured graphs, narrow weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from dllm.kernels.statistics import has_kernel
from dllm.models.memory import give_back
from dllm.models.model import HostedModel, Runner, execution_device
from dllm.models.speed.captured import Captured, CudaRecorder
from dllm.models.speed.compiled import Compiled
from dllm.models.speed.linear import (
    check_narrow,
    fuse,
    fuse_layer,
    is_narrow,
    narrow,
    narrow_layer,
)
from dllm.models.speed.packed import check_pack, pack
from dllm.models.speed.rounded import parse_rounding, rounding_of
from dllm.models.speed.widened import check_widen, widen
from dllm.registry import nearest

_LOG = logging.getLogger(__name__)

AUTO = "auto"  # the ways that pay on the machine, picked when a model is loaded

Way = Literal[
    "fused", "packed", "widened", "int8", "int4", "fp8", "kv_int8", "compiled", "captured"
]


def speed_up(model: HostedModel, *ways: str) -> HostedModel:
    """Returns the model with its passes made faster, in any of these ways together.

    - `fused`: one product for queries, keys and values, one for both halves of the gated layer;
      done to the network itself, in place. On CUDA with Triton what lies between the products are
      three kernels of our own (`dllm/kernels/`), unless `compiled` is named too.
    - `packed`: weights laid out once as the products of a CPU read them, beside the usual ones,
      which takes their memory once more; in place; goes with `fused` and `compiled`.
    - `widened`: 16-bit weights multiplied in float32, a part of a weight at a time, for a CPU that
      has no arithmetic for them; in place, takes no memory; goes with `fused`.
    - `int8`, `int4`: weights of the layers rounded to 8 or 4 bits (torchao), also in place.
      `int4:group_size=32` has a scale for each 32 weights of a row in the place of each 64: 32,
      64, 128, 256.
    - `fp8`: the same in floats of 8 bits (e4m3) with a scale for each row; of the size of `int8`.
    - `kv_int8`: what a cache stores of keys and values rounded to 8 bits, half the memory of 16;
      these four alone change what is computed, so the model's name says so.
    - `compiled`: layers through torch.compile.
    - `captured`: passes replayed as CUDA graphs; keeps the K/V store of the last generation.

    Raises ValueError where a way cannot work with the model. Where a compiler or a capture fails
    later, a warning is logged once and passes run as they are.
    """
    chosen = parse_ways(ways)
    _check(model, chosen)
    return apply(model, chosen)


def apply(model: HostedModel, chosen: Sequence[str]) -> HostedModel:
    """Returns the model with ways that were checked; layers that were settled stay as they are."""
    if "fused" in chosen:
        fuse(model.network)
    if "packed" in chosen:
        pack(model.network)
    if "widened" in chosen:
        widen(model.network)
    rounding = rounding_of(chosen)
    if rounding is not None and not is_narrow(model.network):
        narrow(model.network, rounding)
    runner: Runner | None = model.runner
    rounds_keys = model.rounds_keys or "kv_int8" in chosen
    if "fused" in chosen and runner is None and not rounds_keys:  # its kernels write K/V as it is
        runner = _by_kernels(model)
    if "compiled" in chosen:
        runner = Compiled(model.network)
    if "captured" in chosen:
        runner = Captured(runner or model.network, CudaRecorder(model.device))
    name = model.name if rounding is None else f"{model.name}+{rounding.way}"
    name = f"{name}+kv_int8" if rounds_keys and not model.rounds_keys else name
    return replace(model, runner=runner, name=name, rounds_keys=rounds_keys)


def _by_kernels(model: HostedModel) -> Runner | None:
    """Returns what runs a network by the kernels between its products; None: they are not for it.

    They are for one stack of joined layers on CUDA, in the dtypes that Triton rounds as torch does.
    """
    known = model.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if model.network.config.decoder is not None or not known or not has_kernel(model.device):
        return None
    # Triton is optional, and is only there where CUDA is.
    from dllm.models.speed.kernel_passes import KernelPasses, fault

    why = fault(model.device, model.dtype)
    if why:
        _LOG.warning("operations between products run one by one, without Triton: %s", why)
        return None
    return KernelPasses(model.network)


def parse_ways(ways: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns ways from a sequence, or from one text such as "fused+int4:group_size=32"."""
    names = ways.split("+") if isinstance(ways, str) else list(ways or ())
    known: Any = get_args(Way)
    if AUTO in names:
        raise ValueError(f"speed {AUTO!r} picks by itself when a model is loaded: give it alone")
    words: dict[str, str] = {}
    for name in names:
        rounding = parse_rounding(name)
        kind = name if rounding is None else rounding.kind
        if kind not in known:
            raise ValueError(
                f"unknown way to speed a model up {name!r}: {nearest(name, known)}; known: "
                f"{', '.join(known)}, or 'auto' alone where it is loaded"
            )
        if kind in words:
            raise ValueError(f"speed-up {kind!r} is given twice")
        words[kind] = name if rounding is None else rounding.way
    both = [way for way in known if way in words and parse_rounding(words[way]) is not None]
    if len(both) > 1:
        named = " and ".join(map(repr, both))
        raise ValueError(f"speed-ups {named} both round the weights: give one of them")
    return tuple(words[way] for way in known if way in words)


def settle(ways: Sequence[str]) -> Callable[[nn.Module], None] | None:
    """Returns what is done to each layer as soon as its weights are read; None: nothing.

    So no two layers that are rounded are there in full at a time.
    """
    rounding = rounding_of(ways)
    if rounding is None:
        return None

    def one(block: nn.Module) -> None:
        if "fused" in ways:  # first, as fewer and larger weights are rounded then
            fuse_layer(block)
        narrow_layer(block, rounding)
        give_back()

    return one


def _check(model: HostedModel, ways: Sequence[str]) -> None:
    """Raises ValueError before anything is changed."""
    devices = {execution_device(layer) for layer in model.network.layers} | {model.device}
    if ways and (len(devices) > 1 or any(w.is_meta for w in model.network.parameters())):
        raise spread_error(model.name, ways)
    check_on(model.device, model, ways)


def spread_error(name: str, ways: Sequence[str]) -> ValueError:
    """Returns the error for a model that is on more than one device."""
    return ValueError(
        f"{name!r} is spread over devices or offloaded, and {', '.join(ways)} needs it on one: "
        "load it with device=, without device_map"
    )


def ways_of(model: HostedModel, device: torch.device) -> dict[str, str]:
    """Returns each way with the reason why a model cannot go it on a device, "" where it can.

    The model may be one without memory.
    """
    reasons = dict.fromkeys(get_args(Way), "")
    for way in reasons:
        try:
            check_on(device, model, [way])
        except ValueError as error:
            reasons[way] = str(error)
    return reasons


def check_on(device: torch.device, model: HostedModel, ways: Sequence[str]) -> None:
    """Raises ValueError for ways that a model cannot go on a device."""
    rounding = rounding_of(ways)
    run_by_others = [way for way in ("compiled", "captured") if way in ways]
    if run_by_others and model.network.config.decoder is not None:
        raise ValueError(
            f"{' and '.join(map(repr, run_by_others))} run one stack of layers, and "
            f"{model.name!r} has an encoder and a decoder: leave out what is named, 'fused', "
            "'packed', 'int8', 'int4' and 'fp8' work"
        )
    if "captured" in ways and device.type != "cuda":
        raise ValueError(
            f"'captured' replays CUDA graphs, and {model.name!r} is on {device}: load it "
            "with device='cuda', or leave 'captured' out"
        )
    if model.runner is not None and {"compiled", "captured"} & set(ways):
        raise ValueError(
            f"{model.name!r} is sped up already: load it with speed=None and name all ways in one "
            "call, or give them as speed= where it is loaded"
        )
    if "packed" in ways:
        if rounding or {"captured", "widened"} & set(ways):
            raise ValueError(
                "'packed' goes with 'fused' and 'compiled': 'int8', 'int4', 'fp8' and 'widened' "
                "keep weights in another way, and 'captured' is for CUDA"
            )
        check_pack(model.network, device)
    if "widened" in ways:
        if rounding or {"captured", "compiled"} & set(ways):
            raise ValueError(
                "'widened' goes with 'fused': 'int8', 'int4' and 'fp8' keep weights in another "
                "way, compilers do not see through its products, and 'captured' is for CUDA"
            )
        check_widen(model.network, device)
    if rounding is not None:
        check_narrow(model, rounding, device)
    if "kv_int8" in ways or model.rounds_keys:
        _check_rounded_keys(model, ways)


def _check_rounded_keys(model: HostedModel, ways: Sequence[str]) -> None:
    """Raises ValueError where the K/V store cannot be rounded."""
    if {"compiled", "captured"} & set(ways):
        raise ValueError(
            "'kv_int8' goes with 'fused', 'packed', 'widened', 'int8', 'int4' and 'fp8': "
            "'compiled' and 'captured' read and write K/V as they are"
        )
    if model.network.config.decoder is not None:
        raise ValueError(
            f"'kv_int8' rounds what one stack of layers stores, and {model.name!r} has an encoder "
            "and a decoder that share it: leave 'kv_int8' out"
        )
    if model.runner is not None:
        raise ValueError(
            f"'kv_int8' takes another K/V store than {model.name!r} has, which is sped up or "
            "spread already: load it with speed=None and name all ways in one call"
        )
