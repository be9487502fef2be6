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

# The words of Qwen and Llama configurations for what LLaDA's own keys say.
OTHER_NAMES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
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
    fields.warn_of_others(OTHER_NAMES)
    if fields.has("clip_qkv"):
        raise fields.error("clip_qkv", fields.config["clip_qkv"], "null or the key left out")
    width, num_heads = fields.integer("d_model"), fields.integer("n_heads")
    if width % num_heads:
        raise fields.error("d_model", width, f"a multiple of n_heads={num_heads}")
    rows = "embedding_size" if fields.has("embedding_size") else "vocab_size"
    if fields.has("vocab_size") and fields.integer(rows) < fields.integer("vocab_size"):
        allowed = f"at least vocab_size={fields.integer('vocab_size')}"
        raise fields.error(rows, fields.integer(rows), allowed)
    return NetworkConfig(
        vocab_size=fields.integer(rows),
        hidden_size=width,
        intermediate_size=read_intermediate_size(fields, width),
        num_layers=fields.integer("n_layers"),
        num_heads=num_heads,
        num_kv_heads=read_num_kv_heads(fields, num_heads),
        head_dim=width // num_heads,
        rope_theta=fields.rope_theta(),
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
    """Returns the number of key/value heads, which `multi_query_attention` must not deny."""
    single = fields.flag("multi_query_attention", default=False)
    if not fields.has("n_kv_heads"):
        return 1 if single else num_heads
    count = fields.integer("n_kv_heads")
    if single and count != 1:
        raise fields.error("n_kv_heads", count, "1 where multi_query_attention is true")
    return count


FAMILY = Family(
    architecture="LLaDAModelLM",
    network_of=network_of,
    names=NAMES,
    mask_tokens=("<|mdm_mask|>",),
    max_length_key="max_sequence_length",
    turn_ends=("<|eot_id|>",),
)
