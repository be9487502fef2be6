"""Settings of what transformers' `generate` hands on: processors, criteria, configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StopStringCriteria,
)

from dllm.settings import HINTS

# Of a processor's class, the setting that it stands for and the attribute that has its value.
_PROCESSORS: dict[type, tuple[str, str]] = {
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
    SuppressTokensLogitsProcessor: ("forbidden_token_ids", "suppress_tokens"),
    MinNewTokensLengthLogitsProcessor: ("min_new_tokens", "min_new_tokens"),
    MinLengthLogitsProcessor: ("min_new_tokens", "min_length"),
}
_CRITERIA = (EosTokenCriteria, MaxLengthCriteria, StopStringCriteria)
# Of a generation configuration, what asks for something else than a decoding that is told by
# processors and criteria, and the values with which it asks for nothing.
_NOTHING = (None, False)
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "prompt_lookup_num_tokens": _NOTHING,
    "penalty_alpha": _NOTHING,
    "dola_layers": _NOTHING,
    "cache_implementation": _NOTHING,
    "output_scores": _NOTHING,
    "output_logits": _NOTHING,
    "output_attentions": _NOTHING,
    "output_hidden_states": _NOTHING,
}
# What `generate` makes itself, and a canvas has no use for.
_OF_GENERATE = ("position_ids", "use_cache", "logits_to_keep")
_CACHES = ("cache", "past_key_values")  # since transformers 5.24, and before


def read_processors(processors: Iterable[Any], sampled: bool, width: int) -> dict[str, Any]:
    """Returns the settings that logits processors stand for; ValueError for any other.

    `sampled`: without a temperature of its own it is 1, as in transformers; else greedy. `width`
    are the columns of the prompts, padding included.
    """
    found: dict[str, Any] = {}
    for one in processors:
        if type(one) not in _PROCESSORS:
            raise ValueError(
                f"logits_processor holds {type(one).__name__}, and a canvas is filled in any "
                f"order: understood are {_names(_PROCESSORS)}; others that ask for no order go to "
                "dllm.generate(dllm.wrap(model), ..., logits_processors=...)"
            )
        name, attribute = _PROCESSORS[type(one)]
        value = getattr(one, attribute)
        if name == "min_new_tokens":  # for which `generate` adds both processors
            value = value - width if type(one) is MinLengthLogitsProcessor else value
            value = max(value, found.pop(name, 0))
        if name in found:
            raise ValueError(f"logits_processor holds {type(one).__name__} twice: leave one out")
        if getattr(one, "min_tokens_to_keep", 1) != 1:
            raise ValueError(
                f"{type(one).__name__} has min_tokens_to_keep={one.min_tokens_to_keep}; it must "
                "be 1"
            )
        found[name] = tuple(value.tolist()) if isinstance(value, Tensor) else value
    return {"temperature": 1.0, **found} if sampled else {**found, "temperature": 0.0}


def read_criteria(criteria: Iterable[Any], width: int) -> dict[str, Any]:
    """Returns the settings that stopping criteria stand for; ValueError for any other.

    `width` are the columns of the prompts, padding included.
    """
    found: dict[str, Any] = {}
    for one in criteria:
        if type(one) is EosTokenCriteria:
            found["eos_token_id"] = torch.as_tensor(one.eos_token_id).flatten().tolist()
        elif type(one) is MaxLengthCriteria:
            found["max_new_tokens"] = one.max_length - width
        elif type(one) is StopStringCriteria:
            found["stop"] = tuple(one.stop_strings)
        else:
            raise ValueError(
                f"stopping_criteria holds {type(one).__name__}: understood are {_names(_CRITERIA)}"
                f"; {HINTS['stopping_criteria']}"
            )
    return found


def check_configuration(config: GenerationConfig) -> None:
    """Raises ValueError that names what a generation configuration asks for and cannot have."""
    for name, nothing in _REFUSED.items():
        value = getattr(config, name, None)
        if value not in nothing:
            hint = HINTS.get(name, "dllm.generate's settings say what there is")
            raise ValueError(f"{name}={value!r} cannot be had from a canvas: {hint}")


def attention_mask_of(given: Mapping[str, Any]) -> Tensor | None:
    """Returns the padding mask (B, L) of what `generate` hands a model besides tokens.

    Raises ValueError that names what a model that fills a canvas is not given.
    """
    rest = {name: value for name, value in given.items() if name not in _OF_GENERATE}
    for name in _CACHES:
        kept = rest.pop(name, None)
        # One that `generate` has made holds nothing yet.
        if kept is not None and _num_kept(kept):
            raise ValueError(f"{name} holds {_num_kept(kept)} tokens: {HINTS['past_key_values']}")
    mask: Tensor | None = rest.pop("attention_mask", None)
    unread = [name for name, value in rest.items() if value is not None]
    if unread:
        raise ValueError(
            f"{unread[0]} is not read by diffusion_generate: give input_ids, and attention_mask "
            "where rows are padded"
        )
    return mask


def of_config(config: GenerationConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options: those given, else those that a generation configuration has."""
    found = {
        name: getattr(config, name, None) if value is None else value
        for name, value in given.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _num_kept(cache: Any) -> int:
    length: Callable[[], Any] | None = getattr(cache, "get_seq_length", None)
    return len(cache) if length is None else int(length())


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
