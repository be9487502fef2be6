"""Keys and tensor names that families of Qwen and Llama blocks share; not a family itself."""

from __future__ import annotations

from dllm.models.config import NetworkConfig
from dllm.models.families.family import Fields, TensorNames

NAMES = TensorNames(
    embedding="model.embed_tokens",
    norm="model.norm",
    head="lm_head",
    layer="model.layers.{layer}",
    parts={
        "attention_norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention.out": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    },
)


# Of a layer with experts.
MIXTURE = {
    "feed_forward.router": "mlp.gate",
    "feed_forward.experts.gate": "mlp.experts.{expert}.gate_proj",
    "feed_forward.experts.up": "mlp.experts.{expert}.up_proj",
    "feed_forward.experts.down": "mlp.experts.{expert}.down_proj",
}


def read_dense(
    fields: Fields, *, inner: str = "intermediate_size", rotated: float = 1
) -> NetworkConfig:
    """Returns the network of a dense configuration without biases or head norms.

    The family replaces the switches in which it differs. `inner` is the key of the feed-forward
    layer's width, `rotated` the part of a head that is rotated.
    """
    fields.only({"hidden_act": "silu", "use_sliding_window": False, "use_mrope": False})
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if fields.has("head_dim"):
        head_dim = fields.integer("head_dim")
    elif hidden_size % num_heads:
        allowed = f"a multiple of num_attention_heads={num_heads}, or give head_dim"
        raise fields.error("hidden_size", hidden_size, allowed)
    else:
        head_dim = hidden_size // num_heads
    check_layer_types(fields)
    has_groups = fields.has("num_key_value_heads")
    return NetworkConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer(inner),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads") if has_groups else num_heads,
        head_dim=head_dim,
        rope_theta=fields.rope_theta(rotated),
        rms_norm_eps=fields.number("rms_norm_eps"),
        tie_embeddings=fields.flag("tie_word_embeddings", default=False),
    )


def check_layer_types(fields: Fields) -> None:
    """Refuses layers whose attention is not full, and a list that is not of all layers."""
    if not fields.has("layer_types"):
        return
    kinds, count = fields.config["layer_types"], fields.integer("num_hidden_layers")
    if not isinstance(kinds, list):
        raise fields.error("layer_types", kinds, "a list")
    for kind in kinds:
        if kind != "full_attention":
            raise fields.error("layer_types", kind, '"full_attention" in every layer')
    if len(kinds) != count:
        raise fields.error("len(layer_types)", len(kinds), f"num_hidden_layers={count}")
