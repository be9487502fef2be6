"""RND1 30B-A3B: a Qwen3-MoE block with full attention and shifted logits.

Source: RadicalNumerics/RND1, modeling_rnd.py. Their class puts the sizes of the released model in
the place of what config.json says; here config.json is read.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen, sdar
from dllm.models.families.family import Family, Fields


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of an RND1 config.json: experts and norms are those of Qwen3-MoE."""
    fields.only({"is_causal": False})
    return replace(sdar.mixture_of(fields), norm_multiply_first=False)


FAMILY = Family(
    architecture="RND1LM",
    network_of=network_of,
    names=replace(qwen.NAMES, parts={**qwen.NAMES.parts, **qwen.MIXTURE}),
    mask_tokens=("<|mask|>",),
    logit_shift=1,
    turn_ends=("<|im_end|>",),
)
# Files that name the class without the head hold the head all the same.
BASE_FAMILY = replace(FAMILY, architecture="RND1Model")
