"""Nemotron-Labs-Diffusion (3B, 8B, 14B): a Ministral block, causal up to the block at hand.

Source: Blaizzy/mlx-vlm, models/nemotron_labs_diffusion, and NVIDIA's cards. What was decoded is
stored as a causal pass sees it; the open block sees all of that and all of itself. Rotary positions
are stretched (YaRN), and far queries scaled. An earlier revision names its class after Ministral;
`DiffEncoderModel` is a sister on a Qwen3 block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields, TensorNames
from dllm.models.yarn import YarnConfig

SUPPORTED = {
    "attention_bias": False,
    "mlp_bias": False,
    "dlm_paradigm": "bidirectional",
    "dlm_type": "llada",  # logits of a column are of that column
    "causal_context": True,
}
ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "original_max_position_embeddings", "max_position_embeddings"),
    *("truncate", "llama_4_scaling_beta"),
}


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a Nemotron-Labs-Diffusion config.json."""
    fields.only(SUPPORTED)
    fields.require("head_dim")  # 14B: 128, where width and heads would give 160
    if fields.has("sliding_window"):
        raise fields.error("sliding_window", fields.config["sliding_window"], "null")
    rope = read_rope(fields)
    yarn = None if rope is None else read_yarn(rope)
    if rope is None:
        return qwen.read_dense(fields)
    theta = rope.config.get("rope_theta", fields.config.get("rope_theta"))
    plain = {"rope_theta": theta, "rope_parameters": None, "rope_scaling": None}
    return replace(qwen.read_dense(replace(fields, config={**fields.config, **plain})), yarn=yarn)


def qwen3_of(fields: Fields) -> NetworkConfig:
    """Returns the network of the sister on a Qwen3 block."""
    plain = fields.flag("disable_qk_norm", default=False)
    return replace(network_of(fields), qk_norm=not plain)


def read_rope(fields: Fields) -> Fields | None:
    """Returns what config.json says of stretched rotary positions, None where they are plain.

    The files say it twice, and both must agree.
    """
    places = {
        key: fields.config[key] for key in ("rope_parameters", "rope_scaling") if fields.has(key)
    }
    found: list[tuple[str, Mapping[str, Any]]] = []
    for key, rope in places.items():
        if not isinstance(rope, Mapping):
            raise fields.error(key, rope, "an object or null")
        if rope.get("rope_type", rope.get("type")) == "yarn":
            found.append((key, rope))
    if not found:
        return None
    if len(places) > 1 and len({repr(sorted(rope.items())) for rope in places.values()}) > 1:
        raise fields.error("rope_scaling", places["rope_scaling"], "the same as rope_parameters")
    key, rope = found[0]
    base = fields.config.get("rope_theta", rope.get("rope_theta"))
    if rope.get("rope_theta", base) != base:
        raise fields.error("rope_theta", base, f"{rope['rope_theta']!r}, as {key} has it")
    for name in rope:
        if name not in ROPE_KEYS:
            raise fields.error(f"{key}.{name}", rope[name], "the key left out")
    return Fields(rope, f"{fields.reader} in {key}")


def read_yarn(rope: Fields) -> YarnConfig:
    """Returns the stretch; the factor is the one that is written, whatever the lengths say."""
    factor = rope.number("factor")

    def number(key: str, default: float) -> float:
        return rope.number(key) if rope.has(key) else default

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if rope.has("attention_factor"):
        size = rope.number("attention_factor")
    elif rope.config.get("mscale") and rope.config.get("mscale_all_dim"):
        size = magnitude(rope.number("mscale")) / magnitude(rope.number("mscale_all_dim"))
    else:
        size = magnitude(1.0)
    return YarnConfig(
        factor=factor,
        original_length=rope.integer("original_max_position_embeddings"),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        magnitude=size,
        query_beta=number("llama_4_scaling_beta", 0.0),
        rounded=rope.flag("truncate", default=True),
    )


NAMES = TensorNames(
    embedding="encoder.embed_tokens",
    norm="encoder.norm",
    head="diffusion_head",
    layer="encoder.layers.{layer}",
    parts=qwen.NAMES.parts,
    left_out=(".k_scale", ".v_scale"),  # of an 8-bit store
)

FAMILY = Family(
    architecture="NemotronLabsDiffusionModel",
    network_of=network_of,
    names=NAMES,
    mask_tokens=("<|mask|>",),
    attention="causal_context",
    block_length_key="block_size",
)
EARLIER_FAMILY = replace(FAMILY, architecture="MinistralDiffEncoderModel")
QWEN_FAMILY = replace(FAMILY, architecture="DiffEncoderModel", network_of=qwen3_of)
