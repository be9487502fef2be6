"""Dream 7B, Dream-Coder and DiffuCoder: a Qwen2 block with full attention and shifted logits.

Source: DreamLM/Dream, modeling_dream.py and generation_utils.py (the sampler shifts, not the
model). No tensor name differs from Qwen2's.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a Dream config.json; q, k and v have biases, which no key says."""
    return replace(qwen.read_dense(fields), qkv_bias=True)


FAMILY = Family(
    architecture="DreamModel",
    network_of=network_of,
    names=qwen.NAMES,
    mask_tokens=("<|mask|>",),
    logit_shift=1,
    turn_ends=("<|im_end|>",),
)
