"""Loads a checkpoint onto the project's own transformer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dllm.models.config import CheckpointError
from dllm.models.diffusion_gemma import DiffusionGemma, defaults_of, load_module, spec_of
from dllm.models.families import Family, add_family
from dllm.models.loading.adapter import Adapter
from dllm.models.loading.checkpoint import Checkpoint
from dllm.models.loading.draft_adapter import attaching, find_drafts
from dllm.models.loading.empty import empty_network
from dllm.models.loading.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dllm.models.loading.folder import Source, find_folder
from dllm.models.loading.in_parts import own_part, spread
from dllm.models.loading.room import Room
from dllm.models.loading.saving import save
from dllm.models.loading.weights import (
    DeviceMap,
    Devices,
    Progress,
    Weights,
    dispatch,
    parse_dtype,
    place,
)
from dllm.models.model import HostedModel
from dllm.models.speed import AUTO, apply, check_on, parse_ways, settle, spread_error
from dllm.models.speed.choice import choose, report, subject_of, try_packed
from dllm.models.speed.machine import machine_of
from dllm.models.speed.rounded import Rounding, check_floats

__all__ = ("load", "read_adapter", "save")

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase


def load(  # noqa: PLR0913 one argument for each choice that loading leaves open
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    speed: str | Sequence[str] | None = AUTO,
    family: Family | str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    draft_adapter: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    attention: str | None = None,
    block_length: int | None = None,
    tensor_parallel: int | None = None,
) -> HostedModel:
    """Returns a model from the embedded checkpoint ("tiny"), a folder or a hub id.

    `dtype` is a torch.dtype or its name; None and "auto" take the checkpoint's. `device` defaults
    to torch's default device; `device_map` ("auto", or module -> device) spreads the layers through
    accelerate instead. `revision`, `token`, `cache_dir`, `local_files_only` and `subfolder` go to
    the hub as in transformers; `tokenizer` (a folder, a hub id or a tokenizer) takes the place of
    the checkpoint's own. `speed` names ways of `dllm.speed_up`, such as "fused+captured"; "auto"
    takes those that pay on the machine and change no token (one line in the log says which and
    why), None takes none. `family`
    is one that dllm does not have, as an object or as `path/file.py:NAME`. `adapter` is a LoRA in
    PEFT's layout (a folder or a hub id), merged into the weights and named in the model's name.
    `draft_adapter` is one of attention's output projections (a folder, one inside the checkpoint's
    such as "linear_spec_lora", or a hub id), added in the passes in which verifier `linear` drafts
    and in no other; it is not saved with the model.
    `progress` is called with the bytes of weights that were read and with all, tensor by tensor.
    `attention` is for families whose checkpoints do not say it (A2D): "full", or "block_causal"
    with the block that they were trained on, as `block_length` or as in "block_causal:32".
    `tensor_parallel` is the number of processes, started by torchrun, that hold the network
    together: the first one generates, and the others run its passes
    (`dllm.models.parallel.follow`). Raises
    CheckpointError, a ValueError, for anything that is missing, unknown, mis-shaped or damaged, and
    NotEnoughMemoryError where the weights do not fit, before any is read.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"give device={device!r} or device_map={device_map!r}, not both")
    where, speed = own_part(tensor_parallel, device, speed, device_map)
    if family is not None:
        add_family(family)
    ways = None if speed == AUTO else parse_ways(speed)
    named = None if dtype is None or dtype == "auto" else parse_dtype(dtype)
    source = Source(revision, token, cache_dir, local_files_only, subfolder)
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(
            f"name_or_path is a {type(name_or_path).__name__}: give a folder, a hub id or 'tiny'"
        )
    asked = _asked(attention, block_length)
    checkpoint = Checkpoint(os.fspath(name_or_path), source, _named(tokenizer), asked)
    if checkpoint.is_diffusion_gemma:  # has all that callers read but the network
        refused = {
            "speed": "+".join(ways or ()),
            "adapter": adapter,
            "draft_adapter": draft_adapter,
            "tensor_parallel": tensor_parallel,
        }
        return _diffusion_gemma(checkpoint, named, where, device_map, refused)
    # Read first, as these errors name their file themselves.
    rounding, drafts = (
        _rounding(checkpoint, where, adapter, tensor_parallel),
        find_drafts(draft_adapter, source, checkpoint, tensor_parallel),
    )
    hosts, defaults, words = checkpoint.family, checkpoint.generation, checkpoint.tokenizer
    lora = None if adapter is None else read_adapter(adapter, source, checkpoint.name)
    try:
        network = empty_network(checkpoint.network, rounding)
        spec, weights = checkpoint.spec, Weights(hosts.names, checkpoint.stored, lora)
        weights.check(network)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error}") from error
    merged = "" if adapter is None else f"+{os.fspath(adapter)}"
    chosen, name = named or checkpoint.dtype, checkpoint.name + merged
    parts = (network.to(chosen), spec, words, defaults, checkpoint.described)
    model = HostedModel(name, *parts, revision=checkpoint.commit, recipe=checkpoint.recipe)
    # Of several processes each cuts its part from the whole, on the CPU.
    devices = place(network, chosen, device_map or {"": "cpu" if tensor_parallel else where})
    fill = attaching(drafts, partial(_filled, model, weights, devices, progress, ways))
    return fill() if tensor_parallel is None else spread(fill, model, tensor_parallel, where)


def _rounding(
    checkpoint: Checkpoint, where: torch.device, adapter: object, tensor_parallel: int | None
) -> Rounding | None:
    """Returns how the weights of a checkpoint are rounded, None where they are floats.

    Raises ValueError for what needs float weights, where there are none, and for a device that has
    no such numbers.
    """
    rounding = checkpoint.rounding
    for name, value in (("adapter", adapter), ("tensor_parallel", tensor_parallel)):
        if rounding is not None and value is not None:
            raise ValueError(
                f"{name}={value!r} needs float weights, and {checkpoint.name!r} has them in "
                f"{rounding.bits} bits: load the checkpoint that it was made from"
            )
    if rounding is not None and rounding.floating:
        check_floats(where)
    return rounding


def _filled(
    model: HostedModel,
    weights: Weights,
    devices: Devices,
    progress: Progress | None,
    ways: Sequence[str] | None,
) -> HostedModel:
    """Returns a model with its weights, in ways that are checked before any of them is read.

    None: in those that pay.
    """
    network, dtype, found = model.network, model.dtype, set(map(torch.device, devices.values()))
    if ways is None:
        machine, subject = machine_of(next(iter(found))), subject_of(network, dtype, len(found))
        choice = choose(machine, subject, try_packed)
        report(model.name, choice)
        ways = parse_ways(list(choice.taken))
    elif ways and len(found) > 1:
        raise spread_error(model.name, ways)
    check_on(next(iter(found)), model, ways)
    room = Room.of(model.name, network, devices, ways)
    room.check()
    with room.guarded():
        replace(weights, settle=settle(ways)).fill(network, dtype, devices, progress)
        dispatch(network, devices)
        return apply(model, ways)
    raise AssertionError


def read_adapter(given: str | os.PathLike[str], source: Source, model: str) -> Adapter:
    """Returns the adapter of a folder or a hub id, which is checked as far as it goes by itself.

    Raises CheckpointError. Warns where it names another base than `model`.
    """
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"adapter is a {type(given).__name__}: give a folder or a hub id")
    where = replace(source, revision=None, subfolder="")
    try:
        folder = find_folder(os.fspath(given), where, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    except CheckpointError as error:
        raise CheckpointError(f"adapter={os.fspath(given)!r}: {error}") from error
    adapter = Adapter(folder)
    adapter.warn_of_another_base(model)
    return adapter


def _diffusion_gemma(
    checkpoint: Checkpoint,
    dtype: torch.dtype | None,
    device: torch.device,
    device_map: DeviceMap | None,
    refused: Mapping[str, Any],
) -> Any:
    """Returns transformers' own model of a checkpoint."""
    for name, value in refused.items():
        if value:
            raise ValueError(
                f"{name}={value!r} is for networks that dllm hosts, and {checkpoint.name!r} is run "
                f"by transformers: leave {name} out"
            )
    spec = spec_of(checkpoint.config, checkpoint.eos)
    defaults, words = defaults_of(checkpoint.generation), checkpoint.tokenizer
    placed = {"device_map": {"": device} if device_map is None else device_map}
    module = load_module(checkpoint.folder, dtype or checkpoint.dtype, placed)
    parts = (spec, words, defaults, checkpoint.config, checkpoint.commit)
    return DiffusionGemma(checkpoint.name, module, *parts)


def _named(
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
) -> PreTrainedTokenizerBase | str | None:
    """Returns a tokenizer, or its name; TypeError for what is neither."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, str | os.PathLike):
        return os.fspath(tokenizer)
    from transformers import PreTrainedTokenizerBase  # start-up time: few bring one of their own

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"tokenizer={type(tokenizer).__name__} must be a folder, a hub id or a tokenizer of "
            "transformers"
        )
    return tokenizer


def _asked(attention: str | None, block_length: int | None) -> tuple[str, int | None] | None:
    """Returns an attention and its block, which may stand behind it; None: the checkpoint's."""
    if attention is None:
        if block_length is not None:
            raise ValueError(
                f"block_length={block_length!r} is the block of attention='block_causal': give "
                "both, or the block_length of decoding to generate"
            )
        return None
    kind, colon, length = attention.partition(":")
    if not colon:
        return kind, block_length
    if block_length is not None or not length.isdecimal():
        raise ValueError(
            f"attention={attention!r} with block_length={block_length!r}: give one block, as in "
            "'block_causal:32'"
        )
    return kind, int(length)
