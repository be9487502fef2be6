"""iLLaDA 8B: a Llama block with full attention and a tied head.

Source: GSAI-ML/iLLaDA-8B-Base, modeling file. Its config.json names no mask token.
"""

from __future__ import annotations

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of an iLLaDA config.json."""
    fields.only({"attention_bias": False, "mlp_bias": False})
    if fields.has("layer_norm_eps"):
        allowed = "null, which selects RMSNorm; a number would mean LayerNorm"
        raise fields.error("layer_norm_eps", fields.config["layer_norm_eps"], allowed)
    return qwen.read_dense(fields)


FAMILY = Family(
    architecture="ILLaDAForCausalLM",
    network_of=network_of,
    names=qwen.NAMES,
    mask_tokens=("<[MASK]>",),
)
