"""A network that has shapes and no memory, which a checkpoint's tensors then fill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dllm.models.config import NetworkConfig
from dllm.models.encoder_decoder import EncoderDecoder
from dllm.models.speed.linear import narrow_layer
from dllm.models.speed.rounded import Rounding
from dllm.models.transformer import Transformer

# What decides between experts whose scores are close, whatever the dtype of the rest.
KEPT_IN_FLOAT32 = ("router.bias",)


def empty_network(config: NetworkConfig, rounding: Rounding | None = None) -> Transformer:
    """Returns a network whose parameters have shapes but no memory.

    `rounding` is that of its layers' weights; None: they are floats. Not accelerate's
    init_empty_weights, which unties a tied head.
    """
    kind = Transformer if config.decoder is None else EncoderDecoder
    with torch.device("meta"), _Unfilled():
        network = kind(config).eval().requires_grad_(False)
    if rounding is not None:
        for block in network.layers:
            narrow_layer(block, rounding, empty=True)
    return network


def kept_in(parameter: str, weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of a parameter in a network of a dtype; integers stay what they are."""
    if not weight.is_floating_point():
        return weight.dtype
    return torch.float32 if parameter.endswith(KEPT_IN_FLOAT32) else dtype


class _Unfilled(TorchFunctionMode):
    """Leaves out what gives parameters their first values.

    There is nothing to fill on "meta", and torch imports its compiler to find that out: 892
    modules, two seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        return (
            named["tensor"]
            if getattr(func, "__module__", "") == nn.init.__name__
            else func(*args, **named)
        )
