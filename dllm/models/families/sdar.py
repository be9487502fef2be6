"""SDAR and TraDo (dense): a Qwen3 block with block-causal attention.

Source: JetAstra/SDAR, modeling_sdar.py; arXiv 2510.06303. Blocks count from column 0.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of an SDAR config.json.

    The published file calls flash-attn's fused RMSNorm for all norms, which multiplies by the
    weight in float32 before it casts down; that rounding is the default, because it is the one
    the checkpoints were trained and published with. `"norm_multiply_first": false` in
    config.json selects the rounding of transformers' Qwen3 instead. In float32 they are one.
    """
    if fields.has("num_experts"):
        raise fields.error("num_experts", fields.config["num_experts"], "dense checkpoints only")
    fields.only({"attention_bias": False})
    fields.require("head_dim")  # SDAR-4B: 32 heads of 128 on a width of 2560, so never derived
    return replace(
        qwen.read_dense(fields),
        qk_norm=True,
        norm_multiply_first=fields.flag("norm_multiply_first", default=True),
    )


FAMILY = Family(
    architecture="SDARForCausalLM",
    network_of=network_of,
    names=qwen.NAMES,
    mask_tokens=("<|MASK|>", "<MASK>"),  # released tokenizers, training folder
    attention="block_causal",
    block_length_key="block_size",
)
