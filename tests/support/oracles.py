"""A random model of each family, and transformers' own class with the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    DynamicCache,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from dllm.models import HostedModel, load

VOCABULARY = 50
# What transformers' models call the store of keys and values: the former since 5.24.
STORE = next(
    n for n in ("cache", "past_key_values") if n in signature(LlamaForCausalLM.forward).parameters
)


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


# Experts, in groups where the family has them, behind a dense layer where it may have one.
MIXTURE: dict[str, Any] = {
    **{key: value for key, value in SIZES.items() if key != "rope_parameters"},
    "head_dim": 16,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 3,
    "tie_word_embeddings": False,
}
PARTIAL = {**SIZES["rope_parameters"], "partial_rotary_factor": 0.5}


# Short enough that frequencies are stretched and queries scaled within a few columns.
STRETCHED: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "beta_slow": 0.25,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


SPECIAL = {"mask_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}


ORACLES: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "DreamModel": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=False), {}),
    "DimpleModel": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, tie_word_embeddings=False),
        {"full_attn_mask": True, "mrope_section": [1, 1, 2], "vision_config": {"depth": 2}},
    ),
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
    "LLaDAMoEModelLM": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **MIXTURE,
            num_experts=8,
            norm_topk_prob=False,
            rope_parameters=SIZES["rope_parameters"],
        ),
        {"num_experts": 8, "expert_intermediate_size": 24},
    ),
    "LLaDA2MoeModelLM": (
        Glm4MoeForCausalLM,
        Glm4MoeConfig(
            **MIXTURE,
            n_routed_experts=16,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            use_qk_norm=True,
            rope_parameters=PARTIAL,
        ),
        {
            "num_experts": 16,
            "num_shared_experts": 1,
            "partial_rotary_factor": 0.5,
            "block_length": 8,
        },
    ),
    "SDARMoeForCausalLM": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **MIXTURE,
            num_experts=8,
            norm_topk_prob=True,
            rope_parameters=SIZES["rope_parameters"],
        ),
        {"num_experts": 8, "block_size": 4, "norm_multiply_first": False},
    ),
    "A2DQwen3LMHeadModel": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
        {},
    ),
    "A2DQwen2LMHeadModel": (
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, tie_word_embeddings=True),
        {},
    ),
    "A2DLlamaLMHeadModel": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, tie_word_embeddings=False),
        {},
    ),
    "StableDiffcoderForCausalLM": (
        LlamaForCausalLM,
        LlamaConfig(**SIZES, tie_word_embeddings=False),
        {},
    ),
    "RND1LM": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **MIXTURE,
            num_experts=8,
            norm_topk_prob=True,
            rope_parameters=SIZES["rope_parameters"],
        ),
        {"num_experts": 8, "is_causal": False, "sliding_window": False},
    ),
    "NemotronLabsDiffusionModel": (
        Ministral3ForCausalLM,
        Ministral3Config(
            **{**SIZES, "rope_parameters": STRETCHED}, head_dim=16, tie_word_embeddings=False
        ),
        {"block_size": 8},
    ),
    "DiffEncoderModel": (
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=False),
        {"block_size": 8},
    ),
}
# Classes that two revisions of the same files name.
ORACLES["SeedDiffcoderForCausalLM"] = ORACLES["StableDiffcoderForCausalLM"]
ORACLES["RND1Model"] = ORACLES["RND1LM"]
ORACLES["MinistralDiffEncoderModel"] = ORACLES["NemotronLabsDiffusionModel"]


def oracle(architecture: str) -> PreTrainedModel:
    """Returns transformers' model with weights large enough for uneven attention."""
    kind, config, _ = ORACLES[architecture]
    torch.manual_seed(0)
    # Experts one after the other, as in the code of the families themselves.
    ways = {"attn_implementation": "sdpa", "experts_implementation": "eager"}
    model: PreTrainedModel = kind._from_config(config, **ways).eval()
    for name, weight in model.named_parameters():
        spread = 0.2 if "norm" in name or "bias" in name else 2.5 * weight.shape[-1] ** -0.5
        weight.data = torch.randn(weight.shape) * spread + ("norm" in name)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(buffer.shape) * 0.3)
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
    if architecture == "LLaDA2MoeModelLM":
        weights = dict(joined(weights))
    renamed = {}
    for name, weight in one_by_one(weights):
        for theirs, ours in RENAMED.get(architecture, {}).items():
            name = name.replace(theirs, ours)
        renamed[name] = weight.contiguous()
    return renamed


def one_by_one(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields weights as checkpoints have them: those of each expert by themselves."""
    for name, weight in weights.items():
        before, _, part = name.rpartition("experts.")
        if not before or weight.dim() < 3:
            yield name, weight
            continue
        for number, expert in enumerate(weight):
            one = f"{before}experts.{number}"
            if part == "down_proj":
                yield f"{one}.down_proj.weight", expert
            else:
                gate, up = expert.chunk(2)
                yield from ((f"{one}.gate_proj.weight", gate), (f"{one}.up_proj.weight", up))


def joined(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields weights with the projections to queries, keys and values in one."""
    for name, weight in weights.items():
        if "q_proj" in name:
            rows = [
                weights[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")
            ]
            yield name.replace("self_attn.q_proj", "attention.query_key_value"), torch.cat(rows)
        elif "k_proj" not in name and "v_proj" not in name:
            yield name, weight


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


NEMOTRON_NAMES = {"model.": "encoder.", "lm_head": "diffusion_head"}


RENAMED = {
    "NemotronLabsDiffusionModel": NEMOTRON_NAMES,
    "MinistralDiffEncoderModel": NEMOTRON_NAMES,
    "DiffEncoderModel": NEMOTRON_NAMES,
    "LLaDAModelLM": LLADA_NAMES,
    "LLaDA2MoeModelLM": {
        "embed_tokens": "word_embeddings",
        "self_attn.o_proj": "attention.dense",
        "self_attn.q_norm": "attention.query_layernorm",
        "self_attn.k_norm": "attention.key_layernorm",
        "e_score_correction_bias": "expert_bias",
    },
}


def two_stacks(folder: Path) -> None:
    """Writes a checkpoint of E2D2 with a decoder of its own, for which there is no oracle."""
    model, config = oracle("SDARForCausalLM"), own_config("SDARForCausalLM")
    weights, named = own_tensors("SDARForCausalLM", model), {}
    for name, weight in weights.items():
        if name.startswith("model.layers.0"):
            continue  # the encoder's layers are 1 and 2, the decoder's 2 again, turned over
        place = name.replace("layers.1.", "layers.0.").replace("layers.2.", "layers.1.")
        if name != "lm_head.weight":
            named[f"backbone.encoder.{place}"] = weight
        if "layers.2." in name or ("layers" not in name and "embed" not in name):
            own = place.replace("layers.1.", "layers.0.")
            named[f"backbone.decoder.{own}"] = weight.flip(0).contiguous()
    stacks = {
        "_target_": "backbone.LLMasEncoderDecoder",
        "tie_encoder_decoder_weights": False,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
    }
    base = {k: v for k, v in config.items() if k not in SPECIAL and k != "norm_multiply_first"}
    config = {**SPECIAL, "architectures": ["E2D2"], "torch_dtype": "float32", "block_size": 4}
    save_file(named, folder / "model.safetensors")
    whole = {**config, "qwen3_config": base, "backbone_config": stacks}
    (folder / "config.json").write_text(json.dumps(whole))


MADE = {"E2D2": two_stacks}  # families without a class in transformers


def hosted(architecture: str, folder: Path, dtype: str = "float32", **options: Any) -> HostedModel:
    """Returns the oracle as a checkpoint of the family, loaded with further options."""
    if architecture in MADE:
        MADE[architecture](folder)
        return load(folder, dtype=dtype, **options)
    save_file(own_tensors(architecture, oracle(architecture)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(own_config(architecture)))
    return load(folder, dtype=dtype, **options)


def kept_in(store: DynamicCache) -> dict[str, Any]:
    """Returns the keywords with which a model of transformers reads a store and adds to it."""
    return {STORE: store, "use_cache": True}
