"""LLaDA-MoE 7B-A1B: a Qwen3 block with full attention, and experts in every layer.

Source: inclusionAI/LLaDA-MoE-7B-A1B-Instruct, modeling_lladamoe.py.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import ExpertsConfig, NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a LLaDA-MoE config.json.

    The published code does not read `norm_topk_prob`, `routed_scaling_factor` and what the file
    says of groups and scores, nor does this.
    """
    fields.only({"attention_bias": False, "qk_layernorm": True})
    for key in ("clip_qkv", "shared_expert_intermediate_size"):
        if fields.has(key):
            raise fields.error(key, fields.config[key], "null or the key left out")
    check_layers(fields)
    dense = "dense_intermediate_size"  # of layers that no release has
    inner = dense if fields.has(dense) else "expert_intermediate_size"
    biased = fields.flag("moe_router_enable_expert_bias", default=False)
    experts = ExpertsConfig(
        num_experts=fields.integer("num_experts"),
        num_active=fields.integer("num_experts_per_tok"),
        intermediate_size=fields.integer("expert_intermediate_size"),
        bias="weights" if biased else "none",
        normalise=False,
    )
    return replace(qwen.read_dense(fields, inner=inner), qk_norm=True, experts=experts)


def check_layers(fields: Fields) -> None:
    """Refuses layers without experts."""
    kinds, count = fields.config.get("moe_layer_freq"), fields.integer("num_hidden_layers")
    every = [1] * count
    if kinds is not None and (kinds != every or any(type(kind) is not int for kind in kinds)):
        raise fields.error("moe_layer_freq", kinds, f"{count} ones: experts in every layer")


FAMILY = Family(
    architecture="LLaDAMoEModelLM",
    network_of=network_of,
    names=replace(
        qwen.NAMES,
        parts={**qwen.NAMES.parts, **qwen.MIXTURE},
        others={"feed_forward.router.bias": "mlp.expert_bias"},
    ),
    mask_tokens=("<|mask|>",),
    turn_ends=("<|role_end|>",),
)
