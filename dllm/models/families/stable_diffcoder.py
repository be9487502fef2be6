"""Stable-DiffCoder 8B: a Llama block with block-causal attention, in blocks of four.

Source: ByteDance-Seed/Stable-DiffCoder, modeling_stable_diffcoder.py. Blocks count from column 0.
An earlier revision of the files names its class after Seed.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.families import a2d, qwen
from dllm.models.families.family import Family

FAMILY = Family(
    architecture="StableDiffcoderForCausalLM",
    network_of=a2d.llama_of,
    names=qwen.NAMES,
    mask_tokens=("<[MASK_TOKEN]>",),
    attention="block_causal",
    block_length_key="block_length",
    block_length=4,  # released files have no key for it
)
SEED_FAMILY = replace(FAMILY, architecture="SeedDiffcoderForCausalLM")
