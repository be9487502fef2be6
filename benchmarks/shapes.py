"""Networks of known shapes with random weights, made where they are measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import dllm
from dllm.models.config import ModelSpec, NetworkConfig
from dllm.models.layers import Block
from dllm.models.transformer import Transformer


@dataclass(frozen=True)
class Shape:
    """The extent of a full-attention network; heads are as wide as the hidden size divides."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    qkv_bias: bool = False
    logit_shift: bool = False

    @property
    def network(self) -> NetworkConfig:
        """The configuration of the network."""
        return NetworkConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.hidden_size // self.num_heads,
            rope_theta=500000.0,
            rms_norm_eps=1e-5,
            rope_in_float32=True,  # as LLaDA has it
            qkv_bias=self.qkv_bias,
        )


SHAPES = {
    "tiny": Shape(128, 6, 4, 4, 384, 512),
    "50m": Shape(512, 8, 8, 8, 1536, 16384),
    "350m": Shape(1024, 24, 16, 16, 2816, 32768),
    "llada-8b": Shape(4096, 32, 32, 32, 12288, 126464),
    "dream-7b": Shape(3584, 28, 28, 4, 18944, 152064, qkv_bias=True, logit_shift=True),
}


def random_model(
    name: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dllm.HostedModel:
    """Returns a network of a shape; the last token of its vocabulary is the mask."""
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}: known are {', '.join(SHAPES)}")
    shape, usual = SHAPES[name], torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            network = Transformer(shape.network).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    # With the usual weights attention is nearly even and logits hardly differ, so that all masks
    # get the same few tokens; larger ones let positions tell, and make choices clear.
    network.head.weight.mul_(8)
    for block in network.blocks:
        assert isinstance(block, Block)
        block.attention.q.weight.mul_(8)
        block.attention.out.weight.mul_(4)
    last = shape.vocab_size - 1
    spec = ModelSpec(
        vocab_size=shape.vocab_size,
        max_length=8192,
        mask_token_id=last,
        eos_token_ids=(last - 1,),
        pad_token_id=last - 1,
        logit_shift=1 if shape.logit_shift else 0,
    )
    return dllm.HostedModel(name, network, spec)
