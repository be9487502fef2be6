"""E2D2: an encoder of what is committed and a decoder of the open block, both of Qwen3 layers.

Source: kuleshov-group/e2d2, src/denoiser/denoiser.py and src/backbone/encoder_decoder.py; arXiv
2510.22852. What their scripts publish is one stack of which the decoder is the last layers
(LLMasEncoderDecoderShareKV), and two stacks (LLMasEncoderDecoder). The configuration names the
Qwen3 model that the shape is taken from, and what differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dllm.models.config import DecoderConfig, NetworkConfig
from dllm.models.families import qwen
from dllm.models.families.family import Family, Fields, TensorNames

BASE = "qwen3_config"  # config.json of the model that the shape is taken from
_STACKS = {"LLMasEncoderDecoderShareKV": True, "LLMasEncoderDecoder": False}
_DECODER = "backbone.decoder."


@dataclass(frozen=True)
class TwoStackNames(TensorNames):
    """The names of both stacks; of a shared one, and of tied weights, either name will do."""

    def of(self, parameter: str) -> str:
        if not parameter.startswith("decoder_"):
            return super().of(parameter)
        if parameter.startswith("decoder_norm."):
            return parameter.replace("decoder_norm", f"{_DECODER}model.norm")
        own = super().of(parameter.removeprefix("decoder_"))
        return own.replace("backbone.encoder.", _DECODER)

    def first_name(self, stored: str, config: NetworkConfig) -> str:
        assert config.decoder is not None
        ours = stored
        if config.decoder.shared:
            ours = stored.replace(_DECODER, "backbone.encoder.")
        heads = (self.of("head.weight"), "backbone.encoder.lm_head.weight")
        if ours in heads:
            ours = self.of("embedding.weight" if config.tie_embeddings else "head.weight")
        return ours


NAMES = TwoStackNames(
    embedding="backbone.encoder.model.embed_tokens",
    norm="backbone.encoder.model.norm",
    head="backbone.decoder.lm_head",
    layer="backbone.encoder.model.layers.{layer}",
    parts=qwen.NAMES.parts,
)


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the shape side by side: of the base, and what is different from it."""
    base, own = (config.get(key) or {} for key in (BASE, "backbone_config"))
    fields = Fields(config, FAMILY.architecture)
    for key, part in ((BASE, base), ("backbone_config", own)):
        if not isinstance(part, Mapping):
            raise fields.error(key, part, "an object")
    outer = {key: value for key, value in config.items() if key not in (BASE, "backbone_config")}
    shape = {key: value for key, value in own.items() if key != "max_length"}
    return {**outer, **base, **shape}


def base_of(config: Mapping[str, Any]) -> str | None:
    """Returns the model whose config.json is still needed; None: the shape is there."""
    own = config.get("backbone_config")
    name = own.get("pretrained_model_name_or_path") if isinstance(own, Mapping) else None
    there = BASE in config or "num_attention_heads" in flattened(config)
    return None if there or not isinstance(name, str) else name


def network_of(fields: Fields) -> NetworkConfig:
    """Returns the network of an E2D2 config.json."""
    fields.only(
        {
            "attention_bias": False,
            "use_encoder_causal_mask": False,
            "time_conditioned_backbone": False,
            "diffusion_type": "absorbing",
        }
    )
    shared = read_stacks(fields)
    config = {**fields.config, "num_hidden_layers": read_layers(fields, "num_encoder_layers")}
    if config.get("layer_types") is not None:  # of the base, which has layers that are left out
        config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
    decoder = DecoderConfig(read_layers(fields, "num_decoder_layers"), shared)
    encoder = qwen.read_dense(replace(fields, config=config))
    return replace(encoder, qk_norm=True, decoder=decoder)


def read_stacks(fields: Fields) -> bool:
    """Returns whether the decoder is the last layers of the encoder."""
    target, tied = fields.require("_target_"), fields.flag("tie_encoder_decoder_weights", False)
    kind = target.rpartition(".")[2] if isinstance(target, str) else None
    if kind not in _STACKS:
        raise fields.error("backbone_config._target_", target, " or ".join(_STACKS))
    if tied != _STACKS[kind]:
        allowed = f"{str(_STACKS[kind]).lower()}, which {kind} was published with"
        raise fields.error("tie_encoder_decoder_weights", tied, allowed)
    if tied and not fields.flag("keep_top_decoder_layers", False):
        raise fields.error("keep_top_decoder_layers", False, "true: its last layers decode")
    return tied


def read_layers(fields: Fields, key: str) -> int:
    """Returns the number of layers of a stack; -1 are those of the base."""
    if fields.config.get(key) in (None, -1):
        return fields.integer("num_hidden_layers")
    return fields.integer(key)


FAMILY = Family(
    architecture="E2D2",
    network_of=network_of,
    names=NAMES,
    mask_tokens=("<|mask|>", "[MASK]", "<mask>"),
    attention="encoder_decoder",
    block_length_key="block_size",
    flattened=flattened,
    base_of=base_of,
)
