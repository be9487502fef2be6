"""A network that has shapes and no memory, which a checkpoint's tensors then fill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dllm.models.config import NetworkConfig
from dllm.models.encoder_decoder import EncoderDecoder
from dllm.models.transformer import Transformer


def empty_network(config: NetworkConfig) -> Transformer:
    """Returns a network whose parameters have shapes but no memory.

    Not accelerate's init_empty_weights, which unties a tied head.
    """
    kind = Transformer if config.decoder is None else EncoderDecoder
    with torch.device("meta"), _Unfilled():
        return kind(config).eval().requires_grad_(False)


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
