"""Fast-dLLM v2 (1.5B, 7B): a Qwen2 block with block-causal attention and shifted logits.

Source: NVlabs/Fast-dLLM, v2; arXiv 2509.26328. Blocks count from column 0, prompt included.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a Fast-dLLM v2 config.json; q, k and v have biases."""
    return replace(qwen.read_dense(fields), qkv_bias=True)


FAMILY = Family(
    architecture="Fast_dLLM_QwenForCausalLM",
    network_of=network_of,
    names=qwen.NAMES,
    mask_tokens=("|<MASK>|",),
    logit_shift=1,
    attention="block_causal",
    block_length_key="bd_size",
)
