"""The shapes of published checkpoints, by the numbers of their config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dllm.models.config import NetworkConfig
from dllm.models.families import FAMILIES
from tests.support.oracles import own_config


@dataclass(frozen=True)
class Size:
    """A published size of a family."""

    architecture: str
    network: NetworkConfig


def published(architecture: str, **keys: Any) -> Size:
    """Returns a size by the keys in which it differs from the family's small model."""
    config = {**own_config(architecture), "rope_parameters": None, "layer_types": None, **keys}
    return Size(architecture, FAMILIES[architecture].read_network(config))


SIZES = {
    "LLaDA-8B": published(
        "LLaDAModelLM",
        vocab_size=126464, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=32,
        mlp_hidden_size=12288, rope_theta=500000.0, rms_norm_eps=1e-5,
    ),
    "Dream-7B": published(
        "DreamModel",
        vocab_size=152064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, head_dim=128, intermediate_size=18944, rope_theta=1000000.0,
    ),
    # Those with experts are of the cards of inclusionAI's and JetLM's checkpoints.
    "LLaDA-MoE-7B-A1B": published(
        "LLaDAMoEModelLM",
        vocab_size=157184, hidden_size=2048, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=16, head_dim=128, num_experts=64, num_experts_per_tok=8,
        expert_intermediate_size=1024, dense_intermediate_size=8192, rope_theta=50000,
    ),
    "LLaDA2.0-mini": published(
        "LLaDA2MoeModelLM",
        vocab_size=157184, hidden_size=2048, num_hidden_layers=20, num_attention_heads=16,
        num_key_value_heads=4, head_dim=128, num_experts=256, num_experts_per_tok=8,
        moe_intermediate_size=512, intermediate_size=5120, n_group=8, topk_group=4,
        rope_theta=600000,
    ),
    "LLaDA2.0-flash": published(
        "LLaDA2MoeModelLM",
        vocab_size=157184, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=256, num_experts_per_tok=8,
        moe_intermediate_size=1024, intermediate_size=9216, n_group=8, topk_group=4,
        rope_theta=600000,
    ),
    "SDAR-30B-A3B": published(
        "SDARMoeForCausalLM",
        vocab_size=151936, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, intermediate_size=6144, rope_theta=1000000,
    ),
    "RND1-Base-0910": published(
        "RND1LM",
        vocab_size=151936, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, intermediate_size=6144, rope_theta=1000000,
    ),
}  # fmt: skip
