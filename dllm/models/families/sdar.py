"""SDAR and TraDo, dense or with experts: a Qwen3 block with block-causal attention.

Source: JetAstra/SDAR, modeling_sdar.py; arXiv 2510.06303. Blocks count from column 0.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import ExpertsConfig, NetworkConfig
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
        allowed = f"none in {FAMILY.architecture}; {MOE_FAMILY.architecture} has experts"
        raise fields.error("num_experts", fields.config["num_experts"], allowed)
    return read_dense(fields)


def read_dense(fields: Fields) -> NetworkConfig:
    """Returns the network without its experts."""
    fields.only({"attention_bias": False})
    fields.require("head_dim")  # SDAR-4B: 32 heads of 128 on a width of 2560, so never derived
    return replace(
        qwen.read_dense(fields),
        qk_norm=True,
        norm_multiply_first=fields.flag("norm_multiply_first", default=True),
    )


def mixture_of(fields: Fields) -> NetworkConfig:
    """Returns the network of an SDAR config.json with experts: those of Qwen3-MoE.

    Norms are rounded as in the dense files, whose code is the one that was published.
    """
    fields.only({"decoder_sparse_step": 1, "mlp_only_layers": []})
    experts = ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        num_active=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("moe_intermediate_size"),
        normalise=fields.flag("norm_topk_prob", default=True),
    )
    return replace(read_dense(fields), experts=experts)


FAMILY = Family(
    architecture="SDARForCausalLM",
    network_of=network_of,
    names=qwen.NAMES,
    mask_tokens=("<|MASK|>", "<MASK>"),  # released tokenizers, training folder
    attention="block_causal",
    block_length_key="block_size",
)

MOE_FAMILY = replace(
    FAMILY,
    architecture="SDARMoeForCausalLM",
    network_of=mixture_of,
    names=replace(qwen.NAMES, parts={**qwen.NAMES.parts, **qwen.MIXTURE}),
)
