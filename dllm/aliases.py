"""What the literature calls things, in this project's words: one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _remasking(value: Any) -> dict[str, Any]:
    orders = {"low_confidence": "confidence", "random": "random"}
    if value not in orders:
        raise ValueError(f"remasking={value!r}: known: {', '.join(orders)}")
    return {"scheduler": {"name": "fixed_quota", "order": orders[value]}}


def _algorithm(value: Any) -> dict[str, Any]:
    if value == "confidence_threshold":
        return {"scheduler": {"name": "quota_threshold"}}
    return {"scheduler": {"name": "dream", "algorithm": value}}


# What the literature calls things -> this project's settings.
ALIASES: dict[str, str | Callable[[Any], dict[str, Any]]] = {
    "gen_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_gen_length": "max_new_tokens",
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
    "remasking": _remasking,
    "remasking_strategy": _remasking,
    "alg": _algorithm,
    "threshold": lambda value: {"scheduler": {"name": "threshold", "threshold": value}},
    "confidence_threshold": lambda value: {"scheduler": {"name": "threshold", "threshold": value}},
    "factor": lambda value: {"scheduler": {"name": "factor", "factor": value}},
    "dual_cache": lambda value: {"cache": "dual" if value else "none"},
    "use_cache": lambda value: {"cache": "prefix" if value else "none"},
}
# Options of schedulers that users give beside them; `steps` is always the total.
SCHEDULER_OPTIONS = {"steps": "steps", "alg_temp": "order_temperature", "eps": "epsilon"}
