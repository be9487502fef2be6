"""The settings of a generation, under one vocabulary, from one table of other papers' names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch

from dllm.aliases import ALIASES, SCHEDULER_OPTIONS
from dllm.cache import Cache
from dllm.decoding.speculation.verifiers import Verifier
from dllm.registry import nearest
from dllm.schedulers import Scheduler, registry
from dllm.state.candidates import ConfidenceSource
from dllm.state.noise import Noise
from dllm.state.progress import AtEnd

DEFAULT_BLOCK_LENGTH = 32


@dataclass(frozen=True)
class Settings:
    """Everything that `generate` and `stream` can be told.

    What is not given comes from the checkpoint's generation_config.json, then from here.
    """

    max_new_tokens: int = 128  # slots after each prompt
    block_length: int | None = None  # None: the model's trained block, else min(32, slots)
    blocks_from: Literal["prompt", "zero"] = "prompt"  # where blocks are counted from
    scheduler: str | Mapping[str, Any] | Scheduler = "threshold"
    cache: str | Mapping[str, Any] | Cache = "none"
    verifier: str | Mapping[str, Any] | Verifier | None = None  # fewer forwards, the same tokens
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    confidence: ConfidenceSource | None = None  # None: what the scheduler's authors read
    batch_size: int | None = None  # rows decoded at a time, of any number of prompts; None: all
    seed: int | list[int] | None = None  # an int: row b draws from seed + b; a list: one a row
    generator: torch.Generator | list[torch.Generator] | None = None  # draws the seeds
    noise: Noise | None = None  # replaces the seeded noise altogether
    guidance_scale: float = 0.0  # classifier-free guidance; 0: off
    eos_token_id: int | list[int] | None = None  # None: the checkpoint's
    at_eos: AtEnd | None = None  # None: "stop", but "ignore" for infilled text
    forbid_eos: bool = False  # end tokens are never proposed
    defer_eos: bool = False  # end tokens are committed last
    forbidden_token_ids: tuple[int, ...] = ()
    deferred_token_ids: tuple[int, ...] = ()
    fixed: Mapping[int, int | str] | None = None  # slot offset -> token id or text kept there
    infill: bool = False  # mask tokens in the prompt are the slots, none is added
    too_long: Literal["error", "cut"] = (
        "error"  # "cut": such prompts lose tokens at their beginning
    )
    statistics_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        block, rows, top_p, top_k = self.block_length, self.batch_size, self.top_p, self.top_k
        checks: list[tuple[str, bool, str]] = [
            ("max_new_tokens", _whole(self.max_new_tokens, 1), "at least 1"),
            ("block_length", block is None or _whole(block, 1), "at least 1"),
            ("batch_size", rows is None or _whole(rows, 1), "a whole number of at least 1"),
            ("temperature", _number(self.temperature) and self.temperature >= 0, "0 or more"),
            ("top_p", top_p is None or (_number(top_p) and 0 < top_p <= 1), "in (0, 1]"),
            ("top_k", top_k is None or _whole(top_k, 1), "at least 1"),
            (
                "guidance_scale",
                _number(self.guidance_scale) and self.guidance_scale >= 0,
                "0 or more",
            ),
            ("at_eos", self.at_eos in (None, *get_args(AtEnd)), f"one of {get_args(AtEnd)}"),
            ("blocks_from", self.blocks_from in ("prompt", "zero"), "'prompt' or 'zero'"),
            ("too_long", self.too_long in ("error", "cut"), "'error' or 'cut'"),
            ("confidence", self.confidence in (None, "raw", "tempered"), "'raw' or 'tempered'"),
            (
                "statistics_dtype",
                self.statistics_dtype in (torch.float32, torch.float64),
                "torch.float32 or torch.float64; in less, confidences near 1 tie",
            ),
        ]
        checks += [(name, is_so(getattr(self, name)), what) for name, is_so, what in _KINDS]
        for name, holds, allowed in checks:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}")


def _whole(value: Any, least: int | None = None) -> bool:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return is_whole and (least is None or value >= least)


def _wholes(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return value is None or all(map(_whole, several))


def _listed(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_whole, value))


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


_LISTS = ("forbidden_token_ids", "deferred_token_ids")
_KINDS: list[tuple[str, Callable[[Any], bool], str]] = [
    *((name, _wholes, "a whole number or several") for name in ("seed", "eos_token_id")),
    *((name, _listed, "a list of token ids") for name in _LISTS),
    *(
        (name, lambda value: isinstance(value, bool), "true or false")
        for name in ("forbid_eos", "defer_eos", "infill")
    ),
    ("fixed", lambda value: value is None or isinstance(value, Mapping), "a mapping of slots"),
]


def resolve(
    defaults: Mapping[str, Any], base: Settings | None, given: Mapping[str, Any]
) -> Settings:
    """Returns settings from what a call gives, over `base`, over a checkpoint's defaults.

    Raises TypeError that names the nearest known setting for an unknown one.
    """
    known = {field.name for field in fields(Settings)}
    options = {SCHEDULER_OPTIONS[key]: given[key] for key in given if key in SCHEDULER_OPTIONS}
    named: dict[str, Any] = {}
    for key, value in given.items():
        if key in SCHEDULER_OPTIONS:
            continue
        for name, translated in _translate(key, value, known).items():
            if name in named:
                raise TypeError(f"{key}={value!r} sets {name} a second time")
            named[name] = translated
    if base is None:
        recommended = {k: v for k, v in defaults.items() if k in known and v is not None}
        recommended.pop("eos_token_id", None)  # the loader has put it into the model's spec
        base = Settings(**{k: v for k, v in recommended.items() if k not in named})
    if options:
        scheduler = registry.create(named.get("scheduler", base.scheduler))
        named["scheduler"] = scheduler.with_options(options, registry.create)
    return replace(base, **named)


def _translate(key: str, value: Any, known: set[str]) -> dict[str, Any]:
    if key in known:  # YAML has no tuples
        return {key: tuple(value) if key in _LISTS and isinstance(value, list) else value}
    alias = ALIASES.get(key)
    if alias is None:
        names = known | set(ALIASES) | set(SCHEDULER_OPTIONS)
        raise TypeError(f"unknown setting {key}={value!r}: {nearest(key, names)}")
    return {alias: value} if isinstance(alias, str) else alias(value)
