"""Linear layers rewritten in place: fewer, larger products, or weights in 8 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from dllm.models.layers import Attention, Block, SwiGLU
from dllm.models.model import HostedModel
from dllm.models.transformer import Transformer

_QKV, _GATE_UP = ("q", "k", "v"), ("gate", "up")


def fuse(network: Transformer) -> None:
    """Joins the projections of every layer, in place; a network that is fused stays as it is.

    One layer at a time, and each part is freed as soon as it is copied, so that no more than one
    layer's projections are ever there twice.
    """
    config = replace(network.config, fused_qkv=True, fused_gate_up=True)
    for block in network.blocks:
        assert isinstance(block, Block)
        attention, gated = block.attention, block.feed_forward
        if not attention.config.fused_qkv:
            _replace(attention, _QKV, "qkv")
        attention.config = config
        if isinstance(gated, SwiGLU) and not gated.fused:
            _replace(gated, _GATE_UP, "gate_up")
            gated.fused = True
    network.config = config


def parts_of(
    network: Transformer, named: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yields named weights as a network that is not fused has them; views where it is."""
    for name, weight in named:
        path, _, kind = name.rpartition(".")
        parent, _, module = path.rpartition(".")
        owner = network.get_submodule(parent)
        if module == "qkv" and isinstance(owner, Attention):
            widths = [owner.q_width, owner.kv_width, owner.kv_width]
            parts = zip(_QKV, weight.split(widths), strict=True)
        elif module == "gate_up":
            parts = zip(_GATE_UP, weight.chunk(2), strict=True)
        else:
            yield name, weight
            continue
        for part, own in parts:
            yield f"{parent}.{part}.{kind}", own


def _replace(owner: nn.Module, names: Sequence[str], joined: str) -> None:
    """Puts one layer, whose outputs follow each other, in the place of several."""
    parts = [cast("nn.Linear", owner.get_submodule(name)) for name in names]
    linear = nn.Linear(1, 1, bias=parts[0].bias is not None, device="meta").eval()
    linear.in_features = parts[0].in_features
    linear.out_features = sum(part.out_features for part in parts)
    for kind in ("weight", "bias"):
        tensors = [getattr(part, kind) for part in parts]
        if tensors[0] is not None:
            setattr(linear, kind, nn.Parameter(torch.cat(tensors), requires_grad=False))
    for name in names:
        delattr(owner, name)
    setattr(owner, joined, linear)


def narrow(network: Transformer) -> None:
    """Rounds the weights of all layers to 8 bits with a scale a row, in place (torchao).

    Embedding and head keep theirs: the head decides between tokens, and may be the embedding.
    """
    # An optional dependency, which `check_narrow` looks for.
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for block in network.blocks:
        quantize_(block, Int8WeightOnlyConfig(), lambda part, _: isinstance(part, nn.Linear))


def is_narrow(network: Transformer) -> bool:
    """Whether any weight is more than a plain tensor."""
    return any(type(weight.data) is not Tensor for weight in network.parameters())


def check_narrow(model: HostedModel) -> None:
    """Raises ValueError where weights cannot be rounded."""
    if find_spec("torchao") is None:
        raise ValueError("'int8' needs torchao: pip install 'dllm[quantise]'")
    if is_narrow(model.network):
        raise ValueError(f"{model.name!r} has 8-bit weights already: leave 'int8' out")
