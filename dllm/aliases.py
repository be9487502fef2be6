"""What the literature calls things, in this project's words: one table, and words that go together.

Argument lines of Fast-dLLM, LLaDA, Dream, dInfer and d2Cache mean here what they mean there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch

from dllm.cache import Cache
from dllm.constraints.base import Constraint
from dllm.constraints.span import ConstraintSpan
from dllm.constraints.template import Template
from dllm.decoding.speculation.verifiers import Verifier
from dllm.schedulers import Scheduler
from dllm.state.candidates import ConfidenceSource
from dllm.state.noise import Noise
from dllm.state.processing import LogitsProcessor
from dllm.state.progress import AtEnd

logger = logging.getLogger(__name__)

# What the literature calls things -> this project's settings.
ALIASES: dict[str, str | Callable[[Any], dict[str, Any]]] = {
    "gen_length": "max_new_tokens",
    "gen_len": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_gen_length": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "num_return_sequences": "n",
    "stop_strings": "stop",
    "logits_processor": "logits_processors",
    "block_size": "block_length",
    "canvas_length": "block_length",
    "max_num_seqs": "batch_size",
    "max_running_requests": "batch_size",
    "cfg_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "eos_id": "eos_token_id",
    "early_stop": lambda value: {"at_eos": "stop" if value else "ignore"},
    "logits_eos_inf": "forbid_eos",
    "confidence_eos_eot_inf": "defer_eos",
}
# Words of a script that choose the scheduler or the cache together, see `combined`.
_METHOD = (
    *("remasking", "remasking_strategy", "alg", "threshold", "confidence_threshold", "factor"),
    *("parallel_decoding", "use_credit", "low_threshold", "num_transfer_tokens"),
)
_CACHE = ("use_cache", "dual_cache", "prefix_look", "after_look")
ALIASES |= dict.fromkeys(_METHOD, "scheduler") | dict.fromkeys(_CACHE, "cache")
# SDAR's own values of a word that LLaDA's scripts have as well.
_SDAR: dict[str, dict[str, Any]] = {
    "low_confidence_static": {"name": "fixed_quota", "schedule": "block"},
    "sequential": {"name": "fixed_quota", "schedule": "block", "order": "sequential"},
    "low_confidence_dynamic": {"name": "quota_threshold", "quota": "least"},
}
# Options of schedulers that users give beside them; `steps` is always the total.
SCHEDULER_OPTIONS = {
    "steps": "steps",
    "diffusion_steps": "steps",
    "alg_temp": "order_temperature",
    "eps": "epsilon",
}
# Words of scripts that ask for what is always there, or for what has no place here.
WITHOUT_EFFECT = ("output_history", "return_dict_in_generate", "show_speed")


def combined(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a call gives, with `scheduler` and `cache` for the words that choose them.

    Raises TypeError where the words contradict each other, ValueError for an unknown value.
    """
    rest = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
    for words, name, chosen in ((_METHOD, "scheduler", _scheduler), (_CACHE, "cache", _cache)):
        said = {word: rest.pop(word) for word in words if word in rest}
        if not said:
            continue
        if (
            name == "cache"
            and rest.get(name) == "dual"
            and not {"use_cache", "dual_cache"} & {*said}
        ):
            said["dual_cache"] = bool(rest.pop(name))  # dInfer's cache=dual with its vicinity
        if name in rest:
            word, value = next(iter(said.items()))
            raise TypeError(f"{word}={value!r} sets {name} a second time: give one of them")
        part = chosen(said, rest)
        rest |= {} if part is None else {name: part}
    return rest


def _scheduler(said: Mapping[str, Any], rest: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the scheduler that the words of a script mean; `rest` loses what it leaves unread."""
    strategy = said.get("remasking_strategy")
    if strategy in _SDAR:
        return _of_sdar(said, _SDAR[strategy])
    order = _known(said, "remasking", {"low_confidence": "confidence", "random": "random"})
    strategies = {"low_confidence": "confidence", **dict.fromkeys(_SDAR, "")}
    order = order or _known(said, "remasking_strategy", strategies)
    parallel = _known(said, "parallel_decoding", {"threshold": "threshold", "hierarchy": "low"})
    threshold, count = (
        _one(said, "threshold", "confidence_threshold"),
        said.get("num_transfer_tokens"),
    )
    low, factor, algorithm = said.get("low_threshold"), said.get("factor"), said.get("alg")
    bar = {} if threshold is None else {"threshold": threshold}
    low_bar = {} if low is None else {"low_threshold": low}
    choices = (  # the first that holds
        (algorithm == "confidence_threshold", {"name": "quota_threshold", **bar}),
        (algorithm is not None, {"name": "dream", "algorithm": algorithm}),
        (parallel == "low", {"name": "hierarchical", **bar, **low_bar}),
        (said.get("use_credit"), {"name": "credit", **bar}),
        (factor is not None, {"name": "factor", "factor": factor}),
        (threshold is not None, {"name": "threshold", **bar}),
        (count is not None, {"name": "fixed_quota", "tokens_per_step": count}),
        (order is not None, {"name": "fixed_quota", "order": order}),
    )
    found: dict[str, Any] | None = next((part for holds, part in choices if holds), None)
    if found is None:
        return None
    _check_words(said, found, threshold, factor, order)
    unread = {"quota_threshold": ("alg_temp", "eps"), "fixed_quota": (), "dream": ()}
    for word in unread.get(found["name"], ("steps", "diffusion_steps")):
        if word in rest:  # their code has the word too, and does not read it then
            logger.info("%s=%s has no effect: %s decides", word, rest.pop(word), found["name"])
    return found


def _of_sdar(said: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Returns the scheduler of SDAR's words; one that goes by no confidence leaves it unread."""
    threshold = _one(said, "threshold", "confidence_threshold")
    others = {*said} - {"remasking_strategy", "threshold", "confidence_threshold"}
    if others:
        raise TypeError(
            f"{sorted(others)[0]} sets scheduler a second time, beside remasking_strategy="
            f"{said['remasking_strategy']!r}: leave one of them out"
        )
    if threshold is None:
        return found
    if found["name"] == "quota_threshold":
        return {**found, "threshold": threshold}
    logger.info("threshold=%s has no effect: %s decides", threshold, found["name"])
    return found


def _known(said: Mapping[str, Any], word: str, known: Mapping[str, str]) -> str | None:
    """Returns what a value of a word means here; raises ValueError for an unknown one."""
    value = said.get(word)
    if value is not None and value not in known:
        raise ValueError(f"{word}={value!r}: known: {', '.join(known)}")
    return known[value] if value is not None else None


def _check_words(
    said: Mapping[str, Any],
    found: Mapping[str, Any],
    threshold: Any,
    factor: Any,
    order: str | None,
) -> None:
    """Raises TypeError for words that were given and that the scheduler they chose leaves out."""
    unread = {
        "threshold": threshold is not None and "threshold" not in found,
        "factor": factor is not None and "factor" not in found,
        "remasking": order == "random" and found.get("order") != "random",
    }
    for word, is_left in unread.items():
        if is_left:
            raise TypeError(
                f"{word}={_one(said, word, 'confidence_threshold', 'remasking_strategy')!r} sets "
                f"scheduler a second time, beside {found['name']!r}: leave one of them out"
            )


def _cache(said: Mapping[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """Returns the cache that the words of a script mean; `dual_cache` refines `use_cache`."""
    dual = bool(said.get("dual_cache"))
    name = "none" if not said.get("use_cache", dual) else ("dual" if dual else "prefix")
    sides = {"prefix_look": "vicinity_before", "after_look": "vicinity_after"}
    return {"name": name, **{sides[word]: said[word] for word in sides if said.get(word)}}


def _one(said: Mapping[str, Any], *words: str) -> Any:
    """Returns the value of the first of some words that has one."""
    return next((said[word] for word in words if said.get(word) is not None), None)


class Given(TypedDict, total=False):
    """What `generate` and `stream` can be given: the fields of `Settings`, and other papers' names.

    For editors and type checkers; `dllm.settings.resolve` is what reads it.
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
    constraint: Constraint | ConstraintSpan | Sequence[Constraint | ConstraintSpan | None] | None
    template: Template | Sequence[Template]
    joint: Literal["confidence", "map"]
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
    remasking_strategy: Literal[
        "low_confidence", "low_confidence_static", "low_confidence_dynamic", "sequential"
    ]
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
