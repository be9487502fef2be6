"""What a checkpoint is: the switches of its network, and what decoding must know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["full", "block_causal", "causal"]


@dataclass(frozen=True)
class NetworkConfig:
    """The shape and numerical switches of the one transformer that hosts every family.

    A family (`dllm/models/families/`) reads it from the checkpoint's own `config.json`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    # Two roundings differ between families and decide bit equality in bfloat16.
    rope_in_float32: bool = False  # q and k are rotated in float32 and cast back (LLaDA-8B)
    norm_multiply_first: bool = False  # the norm weight is applied before the cast (SDAR's kernel)
    rotary_dim: int | None = None  # the first `rotary_dim` elements of a head rotate; None: all
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k, before RoPE
    fused_qkv: bool = False  # one product gives queries, keys and values
    fused_gate_up: bool = False  # one product gives both halves of the gated layer
    tie_embeddings: bool = False
    logits_in_float32: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        rotated = self.rotary_dim or self.head_dim
        if rotated % 2 or rotated > self.head_dim:
            raise ValueError(
                f"rotary_dim={rotated} must be even and at most head_dim={self.head_dim}"
            )


@dataclass(frozen=True)
class ModelSpec:
    """What decoding must know of a model: special tokens, limits, attention, alignment."""

    vocab_size: int
    max_length: int  # tokens, prompt and answer together
    mask_token_id: int
    eos_token_ids: tuple[int, ...]  # the first is the one that fills a finished row
    pad_token_id: int
    logit_shift: Literal[0, 1] = 0  # 1: the logits of column p predict column p + 1
    attention: AttentionKind = "full"
    block_length: int | None = None  # trained block of block-causal models, counted from column 0

    def __post_init__(self) -> None:
        if self.attention == "block_causal" and not self.block_length:
            raise ValueError("block-causal attention needs a block_length in the configuration")
        special = {"mask_token_id": self.mask_token_id, "pad_token_id": self.pad_token_id}
        for name, token in special.items():
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}={token} is outside the vocabulary of {self.vocab_size}")
