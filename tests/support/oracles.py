"""A random model of each family, and transformers' own class with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dllm.models import HostedModel, load

VOCABULARY = 50


# Grouped-query attention everywhere, and a head width that the others do not imply.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}


SPECIAL = {"mask_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}


ORACLES: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "DreamModel": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=False), {}),
    "ILLaDAForCausalLM": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True), {}),
    "SDARForCausalLM": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
        {"block_size": 4, "norm_multiply_first": False},
    ),
    "Fast_dLLM_QwenForCausalLM": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, tie_word_embeddings=True),
        {"bd_size": 8},
    ),
    "WeDLMForCausalLM": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
        {"qk_norm": True, "attention_bias": False},
    ),
    "LLaDAModelLM": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=False), {}),
}


def oracle(architecture: str) -> PreTrainedModel:
    """Returns transformers' model with weights large enough for uneven attention."""
    kind, config, _ = ORACLES[architecture]
    torch.manual_seed(0)
    model: PreTrainedModel = kind._from_config(config, attn_implementation="sdpa").eval()
    for name, weight in model.named_parameters():
        spread = 0.2 if "norm" in name or "bias" in name else 2.5 * weight.shape[-1] ** -0.5
        weight.data = torch.randn(weight.shape) * spread + ("norm" in name)
    return model


def own_config(architecture: str) -> dict[str, Any]:
    _, config, extra = ORACLES[architecture]
    own = {**json.loads(config.to_json_string(use_diff=False)), **SPECIAL, **extra}
    if architecture == "LLaDAModelLM":
        own = {
            "d_model": 32,
            "mlp_hidden_size": 48,
            "n_layers": 3,
            "n_heads": 4,
            "n_kv_heads": 2,
            "vocab_size": VOCABULARY,
            "max_sequence_length": 64,
            "rope_theta": 1e4,
            "rms_norm_eps": 1e-6,
            **SPECIAL,
        }
    return {**own, "architectures": [architecture], "torch_dtype": "float32"}


def own_tensors(architecture: str, model: PreTrainedModel) -> dict[str, Tensor]:
    """Returns the model's weights under the names of the family's checkpoints."""
    weights = {k: v.detach().clone() for k, v in model.state_dict().items() if v is not None}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    if architecture != "LLaDAModelLM":
        return weights
    renamed = {}
    for name, weight in weights.items():
        for theirs, ours in LLADA_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = weight
    return renamed


LLADA_NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.layers": "model.transformer.blocks",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def hosted(architecture: str, folder: Path, dtype: str = "float32") -> HostedModel:
    save_file(own_tensors(architecture, oracle(architecture)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(own_config(architecture)))
    return load(folder, dtype=dtype)
