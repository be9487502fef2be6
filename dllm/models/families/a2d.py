"""A2D: stock Qwen3, Qwen2 and Llama networks, trained on with full or block-causal attention.

Source: ZHZisZZ/dllm, pipelines/a2d. Its config.json does not say which of the two: both kinds have
the same class, and the block is an argument of their sampler. `block_size` in config.json, or
`attention` and `block_length` of `dllm.load`, make a checkpoint block-causal.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields


def qwen3_of(fields: Fields) -> NetworkConfig:
    """Returns the network of Qwen3's keys."""
    fields.only({"attention_bias": False})
    fields.require("head_dim")  # 128 on a width of 1024 in the smallest: never derived
    return replace(qwen.read_dense(fields), qk_norm=True)


def qwen2_of(fields: Fields) -> NetworkConfig:
    """Returns the network of Qwen2's keys; q, k and v have biases, which no key says."""
    return replace(qwen.read_dense(fields), qkv_bias=True)


def llama_of(fields: Fields) -> NetworkConfig:
    """Returns the network of Llama's keys."""
    fields.only({"attention_bias": False, "mlp_bias": False})
    return qwen.read_dense(fields)


QWEN3 = Family(
    architecture="A2DQwen3LMHeadModel",
    network_of=qwen3_of,
    names=qwen.NAMES,
    mask_tokens=("<|mask|>",),
    block_length_key="block_size",
    block_optional=True,
    block_words=("bd3lm",),
    blocks_from="prompt",  # its sampler pads prompts on the left, to whole blocks
    turn_ends=("<|im_end|>",),
)
QWEN2 = replace(QWEN3, architecture="A2DQwen2LMHeadModel", network_of=qwen2_of)
LLAMA = replace(
    QWEN3,
    architecture="A2DLlamaLMHeadModel",
    network_of=llama_of,
    turn_ends=("<|eot_id|>",),
)
