"""LLaDA 8B and LLaDA 1.5: a Llama block with full attention and OLMo's names.

Source: GSAI-ML/LLaDA-8B-Instruct, modeling_llada.py; arXiv 2502.09992.
"""

from __future__ import annotations

from dllm.models.config import NetworkConfig
from dllm.models.families.family import Family, Fields, TensorNames

# Descendants reuse the class with these switches set otherwise; the network has no such parts.
SUPPORTED = {
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "alibi": False,
    "rope": True,
}

# `ff_out` is two tensors: the down projection inside a block, the head outside.
NAMES = TensorNames(
    embedding="model.transformer.wte",
    norm="model.transformer.ln_f",
    head="model.transformer.ff_out",
    layer="model.transformer.blocks.{layer}",
    parts={
        "attention_norm": "attn_norm",
        "attention.q": "q_proj",
        "attention.k": "k_proj",
        "attention.v": "v_proj",
        "attention.out": "attn_out",
        "feed_forward_norm": "ff_norm",
        "feed_forward.gate": "ff_proj",
        "feed_forward.up": "up_proj",
        "feed_forward.down": "ff_out",
    },
)


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a LLaDA config.json."""
    fields.only(SUPPORTED)
    if fields.has("clip_qkv"):
        raise fields.error("clip_qkv", fields.config["clip_qkv"], "null or the key left out")
    width, num_heads = fields.integer("d_model"), fields.integer("n_heads")
    if width % num_heads:
        raise fields.error("d_model", width, f"a multiple of n_heads={num_heads}")
    rows = "embedding_size" if fields.has("embedding_size") else "vocab_size"
    return NetworkConfig(
        vocab_size=fields.integer(rows),
        hidden_size=width,
        intermediate_size=read_intermediate_size(fields, width),
        num_layers=fields.integer("n_layers"),
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads),
        head_dim=width // num_heads,
        rope_theta=fields.number("rope_theta"),
        rms_norm_eps=fields.number("rms_norm_eps"),
        rope_in_float32=fields.flag("rope_full_precision", default=True),
        tie_embeddings=fields.flag("weight_tying", default=False),
    )


def read_intermediate_size(fields: Fields, width: int) -> int:
    """Returns the width of the feed-forward layer; `mlp_hidden_size` overrides `mlp_ratio`."""
    if fields.has("mlp_hidden_size"):
        return fields.integer("mlp_hidden_size")
    return fields.integer("mlp_ratio") * width


def read_num_kv_heads(fields: Fields, num_heads: int) -> int:
    """Returns the number of key/value heads; `n_kv_heads` overrides `multi_query_attention`."""
    if fields.has("n_kv_heads"):
        return fields.integer("n_kv_heads")
    return 1 if fields.flag("multi_query_attention", default=False) else num_heads


FAMILY = Family(
    architecture="LLaDAModelLM",
    network_of=network_of,
    names=NAMES,
    mask_tokens=("<|mdm_mask|>",),
    max_length_key="max_sequence_length",
    turn_ends=("<|eot_id|>",),
)
