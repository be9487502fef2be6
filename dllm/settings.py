"""The settings of a generation, under one vocabulary, from one table of other papers' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypedDict

import torch

from dllm.aliases import ALIASES, SCHEDULER_OPTIONS, combined
from dllm.cache import Cache
from dllm.decoding.speculation.verifiers import Verifier
from dllm.options import Count, CountOrNone, Options, Range, Seed, TokenId
from dllm.registry import nearest
from dllm.schedulers import Scheduler, registry
from dllm.state.candidates import ConfidenceSource
from dllm.state.noise import Noise
from dllm.state.processing import LogitsProcessor, check_processors
from dllm.state.progress import AtEnd

DEFAULT_BLOCK_LENGTH = 32
# Below a millionth, logits that it divides leave what float32 can hold.
Temperature = Annotated[
    float, Range(1e-6, 1e6, besides=(0,), words="0 or more, and above 0 from 1e-06 to 1e+06")
]
Guidance = Annotated[float, Range(0, 1e4)]
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Settings(Options):
    """Everything that `generate` and `stream` can be told.

    What is not given comes from the checkpoint's generation_config.json, then from here.
    """

    max_new_tokens: Count = 128  # slots after each prompt
    min_new_tokens: CountOrNone = 0  # slots of each row that hold no end token
    n: Count = 1  # answers to each prompt, one behind the other
    stop: tuple[str, ...] = ()  # texts that end an answer, and are no part of it
    block_length: Count | None = None  # None: the model's trained block, else min(32, slots)
    blocks_from: Literal["prompt", "zero"] = "prompt"  # where blocks are counted from
    scheduler: str | Mapping[str, Any] | Scheduler = "threshold"
    cache: str | Mapping[str, Any] | Cache = "none"
    verifier: str | Mapping[str, Any] | Verifier | None = None  # fewer forwards, the same tokens
    temperature: Temperature = 0.0  # 0: the most probable token
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    top_k: Annotated[int, Range(1, 2**31 - 1)] | None = None
    confidence: ConfidenceSource | None = None  # None: what the scheduler's authors read
    batch_size: Count | None = None  # rows decoded at a time, of any number of prompts; None: all
    seed: Seed | list[Seed] | None = None  # an int: row b draws from seed + b; a list: one a row
    generator: torch.Generator | list[torch.Generator] | None = None  # draws the seeds
    noise: Noise | None = None  # replaces the seeded noise altogether
    guidance_scale: Guidance = 0.0  # classifier-free guidance; 0: off
    eos_token_id: TokenId | list[TokenId] | None = None  # None: the checkpoint's
    at_eos: AtEnd | None = None  # None: "stop", but "ignore" for infilled text
    forbid_eos: bool = False  # end tokens are never proposed
    defer_eos: bool = False  # end tokens are committed last
    forbidden_token_ids: tuple[TokenId, ...] = ()
    deferred_token_ids: tuple[TokenId, ...] = ()
    # Above 1: tokens that the row holds already become less probable.
    repetition_penalty: Annotated[float, Range(0, 1e4, above=True)] = 1.0
    # Called in their order with tokens (N, L), masks where open, and scores (N, V) of N columns.
    logits_processors: tuple[LogitsProcessor, ...] = ()
    fixed: Mapping[int, int | str] | None = None  # slot offset -> token id or text kept there
    infill: bool = False  # mask tokens in the prompt are the slots, none is added
    too_long: Literal["error", "cut"] = (
        "error"  # "cut": such prompts lose tokens at their beginning
    )
    statistics_dtype: torch.dtype = torch.float32  # or float64; "float32" and "float64" are these

    def __repr__(self) -> str:
        given = (
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if getattr(self, one.name) != one.default
        )
        return f"Settings({', '.join(given)})"

    def __post_init__(self) -> None:
        if self.statistics_dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"statistics_dtype={self.statistics_dtype} must be torch.float32 or "
                "torch.float64; in less, confidences near 1 tie"
            )
        if self.min_new_tokens > self.max_new_tokens and not self.infill:
            raise ValueError(
                f"min_new_tokens={self.min_new_tokens} is more than the "
                f"max_new_tokens={self.max_new_tokens} slots of a row: lower it, or raise those"
            )
        if "" in self.stop:
            raise ValueError("stop holds an empty text, which every answer begins with: leave it")
        if self.stop and self.infill:
            raise ValueError(
                f"stop={self.stop!r} ends a text that is read from its beginning, and infilled "
                "text goes on behind its gaps: leave one of them out"
            )
        check_processors(self.logits_processors)


class Given(TypedDict, total=False):
    """What `generate` and `stream` can be given: the fields of `Settings`, and other papers' names.

    For editors and type checkers; `resolve` is what reads it.
    """

    max_new_tokens: int
    min_new_tokens: int
    n: int
    stop: str | Sequence[str]
    block_length: int | None
    blocks_from: Literal["prompt", "zero"]
    scheduler: str | Mapping[str, Any] | Scheduler
    cache: str | Mapping[str, Any] | Cache
    verifier: str | Mapping[str, Any] | Verifier | None
    temperature: float
    top_p: float | None
    top_k: int | None
    confidence: ConfidenceSource | None
    batch_size: int | None
    seed: int | Sequence[int] | None
    generator: torch.Generator | list[torch.Generator] | None
    noise: Noise | None
    guidance_scale: float
    eos_token_id: int | Sequence[int] | None
    at_eos: AtEnd | None
    forbid_eos: bool
    defer_eos: bool
    forbidden_token_ids: Sequence[int]
    deferred_token_ids: Sequence[int]
    repetition_penalty: float
    logits_processors: LogitsProcessor | Sequence[LogitsProcessor]
    fixed: Mapping[int, int | str] | None
    infill: bool
    too_long: Literal["error", "cut"]
    statistics_dtype: torch.dtype | Literal["float32", "float64"]
    # Of the literature, see `dllm.aliases`.
    gen_length: int
    gen_len: int
    max_tokens: int
    max_gen_length: int
    min_tokens: int
    num_return_sequences: int
    stop_strings: str | Sequence[str]
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor]
    block_size: int
    canvas_length: int
    max_num_seqs: int
    max_running_requests: int
    cfg_scale: float
    cfg: float
    eos_id: int | Sequence[int] | None
    early_stop: bool
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool
    remasking: Literal["low_confidence", "random"]
    remasking_strategy: Literal["low_confidence", "random"]
    alg: str
    threshold: float | None
    confidence_threshold: float | None
    factor: float | None
    parallel_decoding: Literal["threshold", "hierarchy"]
    use_credit: bool
    low_threshold: float
    num_transfer_tokens: int
    use_cache: bool
    dual_cache: bool
    prefix_look: int
    after_look: int
    steps: int | None
    diffusion_steps: int | None
    alg_temp: float
    eps: float
    output_history: bool
    return_dict_in_generate: bool
    show_speed: bool
    # What a tokenizer returns, in place of prompts.
    input_ids: Any
    attention_mask: Any


def resolve(
    defaults: Mapping[str, Any], base: Settings | None, given: Mapping[str, Any]
) -> Settings:
    """Returns settings from what a call gives, over `base`, over a checkpoint's defaults.

    Raises TypeError that names the nearest known setting for an unknown one.
    """
    known = {field.name for field in fields(Settings)}
    given = combined(given)
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
        if "scheduler" not in named and "steps" in options and not hasattr(scheduler, "steps"):
            scheduler = registry.create("fixed_quota")  # what a number of steps alone means
        named["scheduler"] = scheduler.with_options(options, registry.create)
    return replace(base, **named)


def _translate(key: str, value: Any, known: set[str]) -> dict[str, Any]:
    if key == "statistics_dtype" and isinstance(value, str):  # of a command line or of YAML
        return {key: _DTYPES.get(value, value)}
    if key in known:
        return {key: value}
    alias = ALIASES.get(key)
    if alias is None:
        names = known | set(ALIASES) | set(SCHEDULER_OPTIONS)
        hint = nearest(key, names, "help(dllm.Settings) lists all")
        raise TypeError(f"unknown setting {key}={value!r}: {hint}")
    return {alias: value} if isinstance(alias, str) else alias(value)
