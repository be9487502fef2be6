"""WeDLM 7B and 8B: a Qwen2 or Qwen3 block in which masks stand behind all tokens.

Source: Tencent/WeDLM, hf_compat/configuration_wedlm.py and modeling_wedlm.py; arXiv 2512.22737.
Their attention is causal over an order in which tokens come first and masks last, each at the
position of its column. Here every column stays where it is and the mask of attention says the
same. Their engine takes 151665 for the mask token where nothing names one; in Qwen3's vocabulary
that is another token, so config.json or the tokenizer must say which it is.
"""

from __future__ import annotations

from dataclasses import replace

from dllm.models.config import NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields

_ROPE = ("rope_theta", "rope_parameters", "rope_scaling")


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of a WeDLM config.json; what it leaves out is as in its authors' class.

    There q, k and v have biases unless `attention_bias` is false (the 8B says so), and heads are
    not normalised unless `qk_norm` is true (the 8B).
    """
    if not any(fields.has(key) for key in _ROPE):
        fields = replace(fields, config={**fields.config, "rope_theta": 10000.0})
    return replace(
        qwen.read_dense(fields),
        qkv_bias=fields.flag("attention_bias", default=True),
        qk_norm=fields.flag("qk_norm", default=False),
    )


FAMILY = Family(
    architecture="WeDLMForCausalLM",
    network_of=network_of,
    names=qwen.NAMES,
    mask_tokens=("<|mask|>",),
    attention="masks_last",
    block_length=16,  # the window of the authors
    turn_ends=("<|im_end|>",),
)
