"""Settings of the lm-evaluation-harness: `--model_args`, and below them what a task asks for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from dllm.aliases import ALIASES, SCHEDULER_OPTIONS
from dllm.compatible import check
from dllm.constraints.written import read_setting
from dllm.models.loading import load
from dllm.models.model import DenoisingModel, HostedModel
from dllm.options import Count, shown
from dllm.options import check as check_options
from dllm.reading import parse_yaml
from dllm.registry import nearest
from dllm.settings import HINTS, Settings, resolve

logger = logging.getLogger(__name__)

TooLong = Literal["error", "cut"]

# What scripts in the field call the checkpoint.
CHECKPOINT = ("pretrained", "model_path", "path")
# Settings that make no sense for all requests of a task alike, or are no text.
NOT_HERE = {"fixed", "generator", "infill", "noise", "statistics_dtype"}
# The harness's names for the number of new tokens; the first that is given counts.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class ArgumentError(ValueError):
    """An argument that the adapter cannot use; the message says what is allowed."""


@dataclass(frozen=True)
class Arguments:
    """The adapter's own arguments; all further ones are settings of `dllm.generate`."""

    pretrained: str  # "tiny", a folder or a hub id
    batch_size: Count = 1  # rows of a pass
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    revision: str | None = None
    adapter: str | None = None  # a LoRA that is merged into it: a folder or a hub id
    family: str | None = None  # of the user's own: module:NAME or path/file.py:NAME
    attention: str | None = None  # where checkpoints do not say it: full, block_causal:32
    mc_num: Count = 128  # masks drawn for a target; short targets have fewer, which are all taken
    is_check_greedy: bool = True  # whether `is_greedy` is decoded or always False
    too_long: TooLong = "error"  # what is done with a prompt that does not fit
    stats: str | None = None  # the file of costs; None: none is written
    settings: Mapping[str, Any] = field(default_factory=dict)  # as they were given

    def __post_init__(self) -> None:
        if not self.pretrained:
            raise ArgumentError(
                f"pretrained={self.pretrained!r} must be 'tiny', a folder or a hub id"
            )
        try:
            check_options(self)
        except ValueError as error:
            raise ArgumentError(str(error)) from None


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
            hint = HINTS.get(name) or nearest(name, known)
            raise ArgumentError(f"unknown model argument {name}={value!r}: {hint}")
        if name in CHECKPOINT:
            if "pretrained" in own:
                raise ArgumentError(f"{name}={value!r} names the checkpoint a second time")
            own["pretrained"] = str(value)
        elif name in _OWN:
            own[name] = _typed(name, value)
        else:
            settings[name] = _constraint(value) if name == "constraint" else value
    if "pretrained" not in own:
        raise ArgumentError("no checkpoint was given: --model_args pretrained=FOLDER, or tiny")
    if isinstance(settings.get("seed"), list):
        raise ArgumentError("seed must be one number: each request's own is derived from it")
    if {"n", "num_return_sequences"} & {*settings}:
        raise ArgumentError("n: a request has one answer; the harness repeats requests (repeats)")
    return Arguments(**own, settings=settings)


def _constraint(value: Any) -> Any:
    """Returns what all answers are held to, as plain data: the harness has it as text."""
    try:
        plain = parse_yaml(value) if isinstance(value, str) else value
        if isinstance(plain, list):
            raise ValueError("a list is one for each prompt; requests have one for all of them")
        read_setting(plain)
    except ValueError as error:
        raise ArgumentError(f"constraint={shown(value)}: {error}") from None
    return plain


def _typed(name: str, value: Any) -> Any:
    """Returns an argument of our own with the type of its field; None stays None."""
    usual = _OWN[name].default
    if isinstance(usual, int):  # or true and false: `check` says what else it may not be
        number = isinstance(value, str) and value.isdecimal() and not isinstance(usual, bool)
        return int(value) if number else value
    return None if value is None else str(value)


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
            family=arguments.family,
            adapter=arguments.adapter,
            attention=arguments.attention,
        )
    except (ValueError, RuntimeError) as error:  # torch's, for a device that it does not know
        raise ArgumentError(f"--model_args: {error}") from error


@dataclass
class Wishes:
    """Makes settings of a task's generation arguments; what the user gave goes first."""

    model: DenoisingModel
    arguments: Arguments
    base: Settings = field(init=False)  # of a task that wishes for nothing
    warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        try:
            self.base = resolve(self.model.defaults, None, self.arguments.settings)
            check(self.model, self.base)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"--model_args: {error}") from error

    @property
    def seed(self) -> int:
        """The number that each request's own seed is derived from."""
        return self.base.seed if isinstance(self.base.seed, int) else 0

    def settings(self, asked: Mapping[str, Any]) -> Settings:
        """Returns the settings of a request; raises ArgumentError for what nobody knows."""
        given = self.arguments.settings
        own = set().union(*(set_by(name, value) for name, value in given.items()))
        try:
            wanted = in_our_names(asked)
            for name, value in list(wanted.items()):
                for ruled in set_by(name, value) & own:
                    wanted.pop(name, None)
                    self._overrule(f"{name}={value!r}", ruled, value)
            return resolve(self.model.defaults, self.base, wanted)
        except (TypeError, ValueError) as error:
            what = f"the task's generation arguments {dict(asked)}"
            raise ArgumentError(f"{what}: {error}") from error

    def _overrule(self, wish: str, name: str, value: Any) -> None:
        ours = getattr(self.base, name)
        text = f"the task asks for {wish}; --model_args has {name}={ours!r}, which is used"
        if ours != value and text not in self.warned:
            logger.warning("%s", text)
            self.warned.add(text)


def set_by(name: str, value: Any) -> set[str]:
    """Returns the settings that a name, or one of the literature's, stands for."""
    if name in SCHEDULER_OPTIONS:
        return {"scheduler"}
    alias = ALIASES.get(name, name)
    return {alias} if isinstance(alias, str) else set(alias(value))


def in_our_names(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns generation arguments as settings; greedy decoding is temperature 0."""
    wanted = {k: v for k, v in asked.items() if k not in (*LENGTHS, "until", "do_sample")}
    length = next((asked[name] for name in LENGTHS if asked.get(name) is not None), None)
    if length is not None:
        wanted["max_new_tokens"] = length
    beams = wanted.pop("num_beams", 1)
    if beams != 1:
        raise ValueError(f"num_beams={beams}: there is no beam search")
    if asked.get("do_sample") is False:
        wanted["temperature"] = 0.0
    elif asked.get("do_sample"):
        wanted.setdefault("temperature", 1.0)
    return wanted


def stops(until: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the texts that end an answer."""
    listed = [until] if isinstance(until, str) else until or ()
    return tuple(text for text in listed if text)


def seed_of(seed: int, *key: Any) -> int:
    """Returns the seed of a request: the same in any batch, on any process."""
    text = json.dumps([seed, *key], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
