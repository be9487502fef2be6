"""Weights in 8 bits: half the memory of bfloat16, and results that are a little different."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dllm.models.transformer import Transformer

if TYPE_CHECKING:
    from dllm.models.model import HostedModel


def narrow(network: Transformer) -> None:
    """Rounds the weights of all layers to 8 bits with a scale a row, in place (torchao).

    Embedding and head keep theirs: the head decides between tokens, and may be the embedding.
    """
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
