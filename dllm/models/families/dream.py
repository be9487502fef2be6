"""Dream 7B and what is built on it: a Qwen2 block with full attention and shifted logits.

Dream-Coder, DiffuCoder, DreamOn, the Dream checkpoints of d3LLM and dParallel, and Dimple, whose
text alone is decoded: where all tokens are text, its three rotary positions are one.

Source: DreamLM/Dream, modeling_dream.py and generation_utils.py (the sampler shifts, not the
model); yu-rp/Dimple, modeling_dimple.py. No tensor name of the text differs from Qwen2's.
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
    expand_tokens=("<|expand|>",),
)


def dimple_of(fields: Fields) -> NetworkConfig:
    """Returns the network of the text in a Dimple config.json."""
    fields.only({"full_attn_mask": True})
    return network_of(fields)


DIMPLE = replace(
    FAMILY,
    architecture="DimpleModel",
    network_of=dimple_of,
    names=replace(qwen.NAMES, left_out=("visual.", "img_projector.")),
)
