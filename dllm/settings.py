"""The settings of a generation, under one vocabulary, from one table of other papers' names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch

from dllm.aliases import ALIASES, SCHEDULER_OPTIONS, combined
from dllm.cache import Cache
from dllm.cache import registry as caches
from dllm.constraints.base import Constraint
from dllm.constraints.span import ConstraintSpan
from dllm.constraints.template import Template
from dllm.constraints.written import read_setting, write_setting
from dllm.decoding.speculation.verifiers import Verifier
from dllm.decoding.speculation.verifiers import registry as verifiers
from dllm.infilling.refused import check_settings, without_refused
from dllm.options import (
    Count,
    CountOrNone,
    MismatchError,
    Options,
    Range,
    Seed,
    TokenId,
    plain,
    shown,
)
from dllm.reading import parse_json
from dllm.registry import Registry, nearest
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
PARTS: dict[str, Registry[Any]] = {
    "scheduler": registry,
    "cache": caches,
    "verifier": verifiers,
}
# End tokens are in the model's spec; the rest of generation_config.json is often that of the model
# that a checkpoint was made from, whose penalty and lengths the authors' decoding does not read.
_NOT_OF_CHECKPOINTS = frozenset(
    {"eos_token_id", "min_new_tokens", "repetition_penalty", "stop", "n"}
)
_LANGUAGES = ("constraint", "template")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}

# What transformers' `generate` takes and a model that fills a canvas has no such thing for: the
# sentence that says what there is.
_NO_BEAMS = "there are no beams: schedulers such as 'lopa' and 'ete' compare variants of a row"
_FILTERS = (
    "temperature, top_p and top_k filter, and logits_processors=MinPLogitsWarper(0.1) or alike"
)
_SHOWN = "the events of dllm.stream(...) have tokens and confidence, and the output has a trace"
_DRAFTS = "verifier='ssd' drafts with the model itself"
HINTS = {
    "assistant_model": _DRAFTS,
    "bad_words_ids": "forbidden_token_ids=[...] are tokens that are never proposed",
    "cache_implementation": "cache='dual' and others say what is computed anew",
    "denoising_steps": "steps=... is the total of all blocks, of a part of one as well",
    "do_sample": "temperature=0 takes the most probable token, temperature=0.7 samples",
    "early_stopping": f"{_NO_BEAMS}; at_eos says where an answer ends",
    "epsilon_cutoff": _FILTERS,
    "eta_cutoff": _FILTERS,
    "generation_config": "dllm.load reads the checkpoint's; give settings by name, or as Settings",
    "inputs": "prompts are the second argument, generate(model, prompts)",
    "length_penalty": _NO_BEAMS,
    "max_length": "max_new_tokens=... counts without the prompt",
    "max_time": "leave the loop of dllm.stream(...) when the time is over; its output stays",
    "min_p": _FILTERS,
    "negative_prompt_ids": "guidance_scale=... guides against the masked prompt",
    "num_beam_groups": _NO_BEAMS,
    "num_beams": _NO_BEAMS,
    "output_attentions": _SHOWN,
    "output_hidden_states": _SHOWN,
    "output_logits": _SHOWN,
    "output_scores": _SHOWN,
    "pad_token_id": "leave it out: prompts of a list may differ in length, none is padded",
    "past_key_values": "memory=dllm.PromptMemory() keeps what a call stored for the next one",
    "penalty_alpha": _FILTERS,
    "prompt_lookup_num_tokens": _DRAFTS,
    "stopping_criteria": "stop=... is a text that ends an answer, eos_token_id a token; for other "
    "reasons leave the loop of dllm.stream(...)",
    "streamer": "dllm.stream(...) yields each step, and callback=... is called with it",
    "suppress_tokens": "forbidden_token_ids=[...] are tokens that are never proposed",
    "tokenizer": "dllm.load(..., tokenizer=...) takes another one than the checkpoint's",
    "typical_p": _FILTERS,
}


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
    batch_size: Count | None = None  # rows at a time, at most; None: by memory and shape
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
    # What an answer must be; a list: one for each prompt, None for those without. As plain data:
    # {"regex": "[0-9]+"}, see `dllm.constraints.from_plain`.
    constraint: Constraint | ConstraintSpan | list[Constraint | ConstraintSpan | None] | None = None
    # What is laid out behind each prompt: fixed texts and holes; a list: one for each prompt. As
    # plain data: {"template": ["Name: ", {"hole": null, "tokens": 4}]}.
    template: Template | list[Template] | None = None
    # "confidence": commits of a step that exclude each other, the surest first; "map": those of the
    # most probable text in the language (arXiv 2505.23061).
    joint: Literal["confidence", "map"] = "confidence"
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
        if self.template is not None:
            check_settings(self)

    def to_json(self) -> str:
        """Returns every setting as JSON text, of which `from_json` makes equal settings.

        A part is the text that names it, or the mapping of all its options. Raises ValueError that
        names the setting for what no text can hold, such as a generator.
        """
        return json.dumps({one.name: _written(self, one.name) for one in fields(self)}, indent=1)

    @staticmethod
    def from_json(given: str | Mapping[str, Any]) -> Settings:
        """Returns the settings of JSON text, or of a mapping such as JSON and YAML have.

        Names are those of a call, the literature's too; what is not there has its default. A part
        that is a mapping is made. Raises ValueError for other text, a name that is there twice and
        values that are not allowed, TypeError for an unknown name.
        """
        named = parse_json(given, "settings") if isinstance(given, str) else given
        if not isinstance(named, Mapping):
            example = 'with names, such as {"max_new_tokens": 64}'
            raise ValueError(f"settings={shown(named)} must be an object {example}")
        found = resolve({}, None, named)
        parts = {name: getattr(found, name) for name in PARTS}
        made = {name: PARTS[name].create(part) for name, part in parts.items() if part is not None}
        texts = {name for name, part in parts.items() if isinstance(part, str)}
        return replace(found, **{name: made[name] for name in made if name not in texts})


def check_joint(settings: Settings) -> None:
    """Raises ValueError for a way to choose among the texts of a constraint that there is not."""
    if settings.joint != "confidence":
        raise ValueError(
            f"joint={settings.joint!r} chooses among texts that a constraint allows, and none is "
            "given: give constraint=..., or leave joint out"
        )


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
        defaults = without_refused(defaults, named.get("template") is not None)
        kept = known - _NOT_OF_CHECKPOINTS
        recommended = {k: v for k, v in defaults.items() if k in kept and v is not None}
        base = Settings(**{k: v for k, v in recommended.items() if k not in named})
    if options:
        scheduler = registry.create(named.get("scheduler", base.scheduler))
        if "scheduler" not in named and "steps" in options and not hasattr(scheduler, "steps"):
            scheduler = registry.create("fixed_quota")  # what a number of steps alone means
        named["scheduler"] = scheduler.with_options(options, registry.create)
    return replace(base, **named)


def _written(settings: Settings, name: str) -> Any:
    """Returns the value of a setting as JSON has it; raises ValueError where it has none."""
    value = getattr(settings, name)
    part = PARTS[name].create(value) if name in PARTS and value is not None else None
    if isinstance(value, str):
        return value
    if name in _LANGUAGES:
        return write_setting(value)
    try:
        written = plain(value if part is None else part.summary())
    except MismatchError:
        raise ValueError(
            f"{name}={shown(value)} cannot be written: it is more than numbers and text; "
            "leave it out of the settings and give it to the call"
        ) from None
    if part is not None:
        try:
            same = PARTS[name].create(written) == part
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"{name}={shown(value)} cannot be written: {written['name']!r} does not name its "
                "class; keep it in a file, and name it as path/file.py:Class"
            )
    return written


def _translate(key: str, value: Any, known: set[str]) -> dict[str, Any]:
    if key == "statistics_dtype" and isinstance(value, str):  # of a command line or of YAML
        return {key: _DTYPES.get(value, value)}
    if key in _LANGUAGES:  # plain data, of JSON and YAML
        return {key: read_setting(value, key)}
    if key == "fixed" and isinstance(value, Mapping):  # in JSON every key is text
        return {key: {_slot(slot): kept for slot, kept in value.items()}}
    if key in known:
        return {key: value}
    alias = ALIASES.get(key)
    if alias is None:
        names = known | set(ALIASES) | set(SCHEDULER_OPTIONS)
        hint = HINTS.get(key) or nearest(str(key), names, "help(dllm.Settings) lists all")
        raise TypeError(f"unknown setting {key}={value!r}: {hint}")
    return {alias: value} if isinstance(alias, str) else alias(value)


def _slot(slot: Any) -> Any:
    return int(slot) if isinstance(slot, str) and slot.isdecimal() else slot
