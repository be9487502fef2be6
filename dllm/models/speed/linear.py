"""Linear layers rewritten in place: joined, or with rounded weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dllm.models.cost import idle_parameters
from dllm.models.layers import Attention, Block, MixtureOfExperts, SwiGLU
from dllm.models.model import HostedModel
from dllm.models.speed.packed import PackedLinear
from dllm.models.speed.rounded import GROUPS, RoundedLinear, Rounding, check_floats
from dllm.models.speed.widened import WidenedLinear
from dllm.models.transformer import Transformer

_QKV, _GATE_UP = ("q", "k", "v"), ("gate", "up")


def fuse(network: Transformer) -> None:
    """Joins the projections of every layer, in place; a network that is fused stays as it is.

    One layer at a time, and each part is freed as soon as it is copied, so that no more than one
    layer's projections are ever there twice.
    """
    config = replace(network.config, fused_qkv=True, fused_gate_up=True)
    for block in network.layers:
        fuse_layer(block)
    network.config = config


def fuse_layer(block: nn.Module) -> None:
    """Joins the projections of one layer, in place."""
    assert isinstance(block, Block)
    attention, behind = block.attention, block.feed_forward
    # The experts of a mixture are joined from the start.
    gated = behind.shared if isinstance(behind, MixtureOfExperts) else behind
    if not attention.config.fused_qkv:
        _replace(attention, _QKV, "qkv")
    attention.config = replace(attention.config, fused_qkv=True, fused_gate_up=True)
    if isinstance(gated, SwiGLU) and not gated.fused:
        _replace(gated, _GATE_UP, "gate_up")
        gated.fused = True


def parts_of(
    network: Transformer, named: Iterable[tuple[str, Tensor]], joined: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yields named weights as a network that is not fused has them; views where it is.

    `joined` are modules of a layer that its family has in one, which stay so.
    """
    for name, weight in named:
        path, _, kind = name.rpartition(".")
        parent, _, module = path.rpartition(".")
        owner = network.get_submodule(parent)
        if module == "qkv" and isinstance(owner, Attention) and "attention.qkv" not in joined:
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
    parts: list[Any] = [owner.get_submodule(name) for name in names]
    rounded = isinstance(parts[0], RoundedLinear)
    linear = RoundedLinear.joined(parts) if rounded else _joined(parts)
    for name in names:
        delattr(owner, name)
    setattr(owner, joined, linear)


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear:
    """Returns one layer whose outputs are those of several, one after the other."""
    linear = nn.Linear(1, 1, bias=parts[0].bias is not None, device="meta").eval()
    linear.in_features = parts[0].in_features
    linear.out_features = sum(part.out_features for part in parts)
    for kind in ("weight", "bias"):
        tensors = [getattr(part, kind) for part in parts]
        if tensors[0] is not None:
            setattr(linear, kind, nn.Parameter(torch.cat(tensors), requires_grad=False))
    return linear


def narrow(network: Transformer, rounding: Rounding) -> None:
    """Rounds the weights of all layers, in place.

    Embedding and head keep theirs: the head decides between tokens, and may be the embedding.
    """
    for block in network.layers:
        narrow_layer(block, rounding)


def narrow_layer(block: nn.Module, rounding: Rounding, empty: bool = False) -> None:
    """Rounds the weights of one layer, in place; `empty`: they are still to come."""
    make = RoundedLinear.empty if empty else RoundedLinear.of
    for module in list(block.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear):
                setattr(module, name, make(part, rounding))


def is_narrow(network: Transformer) -> bool:
    """Whether any weight is rounded."""
    return any(isinstance(part, RoundedLinear) for part in network.modules())


def check_narrow(model: HostedModel, rounding: Rounding, device: torch.device) -> None:
    """Raises ValueError where weights cannot be rounded so, or not on a device."""
    config, way = model.network.config, rounding.way
    if config.experts is not None:
        share = idle_parameters(config) / sum(w.numel() for w in model.network.parameters())
        raise ValueError(
            f"{way!r} rounds linear layers, and {model.name!r} is a mixture of experts, whose "
            f"{config.experts.num_experts} experts are slices of one tensor: they would stay as "
            f"they are, {share:.0%} of the weights and more. Leave {way!r} out"
        )
    if find_spec("torchao") is None:
        raise ValueError(f"{way!r} needs torchao: pip install 'dllm[quantise]'")
    if rounding.floating:
        _check_torchao()
        check_floats(device)
    if model.dtype == torch.float64:
        raise ValueError(
            f"{way!r} rounds float32, bfloat16 and float16, and {model.name!r} is in float64: give "
            "another dtype"
        )
    if is_narrow(model.network):
        raise ValueError(f"{model.name!r} has rounded weights already: leave {way!r} out")
    kept = (PackedLinear, WidenedLinear)
    if any(isinstance(part, kept) for part in model.network.modules()):
        raise ValueError(
            f"{model.name!r} has weights laid out or widened for a CPU: load it with speed={way!r}"
        )
    _check_groups(model, rounding)


def _check_torchao() -> None:
    """Raises ValueError where torchao has no floats of 8 bits."""
    import torchao.quantization  # optional

    if not hasattr(torchao.quantization, "Float8Tensor"):
        raise ValueError(
            f"'fp8' needs a torchao with Float8Tensor, from 0.13 on, and {torchao.__version__} is "
            "installed: pip install -U torchao, or take 'int8'"
        )


def _check_groups(model: HostedModel, rounding: Rounding) -> None:
    """Raises ValueError where the rows of a weight are not whole groups."""
    parts = (part for layer in model.network.layers for part in layer.modules())
    widths = sorted({part.in_features for part in parts if isinstance(part, nn.Linear)})
    size = rounding.group_size or 1
    odd = [width for width in widths if width % size]
    if odd:
        fit = [str(one) for one in GROUPS if not any(width % one for width in widths)]
        way = f"group_size {', '.join(fit)} would do" if fit else "no group size fits: take int8"
        raise ValueError(
            f"{rounding.way!r} rounds groups of {size} weights, and rows in layers of "
            f"{model.name!r} have {', '.join(map(str, odd))}, no multiple of it: {way}"
        )
