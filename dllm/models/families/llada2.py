"""LLaDA2.0 and 2.1 (mini, flash, CAP): block-causal attention, grouped experts, one for all tokens.

Source: inclusionAI/LLaDA2.0-mini, modeling_llada2_moe.py; the network of 2.1 is the same. Blocks
count from column 0.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import ExpertsConfig, NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields, TensorNames

SUPPORTED = {
    "use_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "norm_head": False,
    "score_function": "sigmoid",
    "router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
    "norm_topk_prob": True,
}

NAMES = TensorNames(
    embedding="model.word_embeddings",
    norm="model.norm",
    head="lm_head",
    layer="model.layers.{layer}",
    parts={
        "attention_norm": "input_layernorm",
        "attention.qkv": "attention.query_key_value",
        "attention.q_norm": "attention.query_layernorm",
        "attention.k_norm": "attention.key_layernorm",
        "attention.out": "attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
        **qwen.MIXTURE,
        "feed_forward.shared.gate": "mlp.shared_experts.gate_proj",
        "feed_forward.shared.up": "mlp.shared_experts.up_proj",
        "feed_forward.shared.down": "mlp.shared_experts.down_proj",
    },
    others={"feed_forward.router.bias": "mlp.gate.expert_bias"},
)


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a LLaDA2 config.json."""
    fields.only(SUPPORTED)
    part = fields.partial_rotary_factor() if fields.has("partial_rotary_factor") else 1
    dense = qwen.read_dense(fields, rotated=part)
    return replace(
        dense,
        rotary_dim=fields.rotary_dim(dense.head_dim),
        qk_norm=True,
        fused_qkv=True,
        logits_in_float32=True,
        experts=read_experts(fields),
    )


def read_experts(fields: Fields) -> ExpertsConfig:
    """Returns the experts: sigmoid scores in float32, of a token's best groups of experts."""
    inner, num_shared = fields.integer("moe_intermediate_size"), fields.count("num_shared_experts")
    return ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        num_active=fields.integer("num_experts_per_tok"),
        intermediate_size=inner,
        shared_size=num_shared * inner or None,
        num_dense_layers=fields.count("first_k_dense_replace"),
        score="sigmoid",
        num_groups=fields.integer("n_group"),
        num_active_groups=fields.integer("topk_group"),
        bias="choice",
        scaling=fields.number("routed_scaling_factor"),
        router_in_float32=True,
        sum_in_float32=True,
    )


FAMILY = Family(
    architecture="LLaDA2MoeModelLM",
    network_of=network_of,
    names=NAMES,
    mask_tokens=("<|mask|>",),
    attention="block_causal",
    block_length_key="block_length",
    block_length=32,  # released files have no key for it
    turn_ends=("<|role_end|>",),
)
