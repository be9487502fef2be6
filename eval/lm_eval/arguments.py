"""What `--model_args` of the lm-evaluation-harness may say, read and checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from dllm.models.loading.load import load
from dllm.models.model import HostedModel
from dllm.registry import nearest
from dllm.settings import ALIASES, SCHEDULER_OPTIONS, Settings

logger = logging.getLogger(__name__)

TooLong = Literal["error", "cut"]

# What scripts in the field call the checkpoint.
CHECKPOINT = ("pretrained", "model_path", "path")
# Settings that make no sense for all requests of a task alike, or are no text.
NOT_HERE = {"fixed", "generator", "infill", "noise", "statistics_dtype"}


class ArgumentError(ValueError):
    """An argument that the adapter cannot use; the message says what is allowed."""


@dataclass(frozen=True)
class Arguments:
    """The adapter's own arguments; all further ones are settings of `dllm.generate`."""

    pretrained: str  # "tiny", a folder or a hub id
    batch_size: int = 1  # rows of a pass
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    revision: str | None = None
    mc_num: int = 128  # masks drawn for a target; short targets have fewer, which are all taken
    is_check_greedy: bool = True  # whether `is_greedy` is decoded or always False
    too_long: TooLong = "error"  # what is done with a prompt that does not fit
    stats: str | None = None  # the file of costs; None: none is written
    settings: Mapping[str, Any] = field(default_factory=dict)  # as they were given

    def __post_init__(self) -> None:
        checks = [
            ("pretrained", bool(self.pretrained), "'tiny', a folder or a hub id"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("mc_num", self.mc_num >= 1, "at least 1"),
            ("too_long", self.too_long in get_args(TooLong), f"one of {get_args(TooLong)}"),
        ]
        for name, holds, allowed in checks:
            if not holds:
                raise ArgumentError(f"{name}={getattr(self, name)!r} must be {allowed}")


_OWN = {item.name: item for item in fields(Arguments) if item.name != "settings"}
_SETTINGS = {item.name for item in fields(Settings)} - NOT_HERE


def read_arguments(given: Mapping[str, Any]) -> Arguments:
    """Returns the arguments; raises ArgumentError for unknown names and values of a wrong kind."""
    known = {*_OWN, *CHECKPOINT, *_SETTINGS, *ALIASES, *SCHEDULER_OPTIONS}
    own: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if name == "max_batch_size":
            raise ArgumentError(
                "max_batch_size is for batch_size=auto, which is not supported: give --batch_size"
            )
        if name not in known:
            raise ArgumentError(f"unknown model argument {name}={value!r}: {nearest(name, known)}")
        if name in CHECKPOINT:
            if "pretrained" in own:
                raise ArgumentError(f"{name}={value!r} names the checkpoint a second time")
            own["pretrained"] = str(value)
        elif name in _OWN:
            own[name] = _typed(name, value)
        else:
            settings[name] = value
    if "pretrained" not in own:
        raise ArgumentError("no checkpoint was given: --model_args pretrained=FOLDER, or tiny")
    if isinstance(settings.get("seed"), list):
        raise ArgumentError("seed must be one number: each request's own is derived from it")
    return Arguments(**own, settings=settings)


def _typed(name: str, value: Any) -> Any:
    """Returns an argument of our own with the type of its field; None stays None."""
    kind = str(_OWN[name].type)
    if kind == "int":
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentError(f"{name}={value!r} must be a whole number")
    elif kind == "bool":
        if not isinstance(value, bool):
            raise ArgumentError(f"{name}={value!r} must be true or false")
    elif value is not None:
        return str(value)
    return value


def usable_device(arguments: Arguments) -> str | None:
    """Returns the device to load onto; lm_eval asks for cuda:0 whether or not there is one."""
    asked = None if arguments.device_map is not None else arguments.device
    if asked is None or not asked.startswith("cuda") or torch.cuda.is_available():
        return asked
    logger.warning(
        "device=%r was asked for (lm_eval's default without --device), but torch finds no CUDA "
        "device: running on the CPU",
        asked,
    )
    return "cpu"


def load_model(arguments: Arguments, device: str | None) -> HostedModel:
    """Returns the checkpoint; raises ArgumentError where it cannot be loaded as asked."""
    try:
        return load(
            arguments.pretrained,
            dtype=arguments.dtype,
            device=device,
            device_map=arguments.device_map,
            revision=arguments.revision,
        )
    except (ValueError, RuntimeError) as error:  # torch's, for a device that it does not know
        raise ArgumentError(f"--model_args: {error}") from error
