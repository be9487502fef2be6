"""Linear layers rewritten in place: joined, with rounded weights, or laid out for a CPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.cost import idle_parameters
from dllm.models.layers import Attention, Block, MixtureOfExperts, SwiGLU
from dllm.models.model import HostedModel
from dllm.models.speed.machine import has_mkl, runs_bfloat16
from dllm.models.speed.rounded import GROUPS, RoundedLinear, Rounding
from dllm.models.speed.widened import WidenedLinear
from dllm.models.transformer import Transformer

# Rows of a product up to which MKL's packed weight is faster in float32; longer ones, as of a
# prompt, have enough arithmetic to hide the work of packing.
_MOST_ROWS = 64

# How many times as fast as MKL oneDNN must be in a trial to be taken for float32. The two are alike
# or far apart (MKL leaves the AVX-512 of other makers' CPUs aside), and in between nothing lies, so
# that a machine takes the same one each time and rounds the same way.
_CLEARLY = 1.25

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


def check_narrow(model: HostedModel, rounding: Rounding) -> None:
    """Raises ValueError where weights cannot be rounded so."""
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


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight; the usual one stays beside it."""

    packed: Tensor
    by_onednn: bool  # else by MKL

    @staticmethod
    def of(linear: nn.Linear) -> PackedLinear:
        """Returns the layer with a packed copy; its parameters are those of `linear`."""
        layer = PackedLinear(1, 1, bias=False, device="meta")
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.by_onednn = linear.weight.dtype != torch.float32 or prefers_onednn()
        layer.packed = _packed(linear.weight.detach(), by_onednn=layer.by_onednn)
        return layer.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Returns input (..., in) times the weight, plus the bias, (..., out)."""
        run = torch.ops.dllm.packed_product if torch.compiler.is_compiling() else _product
        product: Tensor = run(x, self.packed, self.weight, self.bias, self.by_onednn)
        return product


@cache
def prefers_onednn() -> bool:
    """Returns whether oneDNN's packed float32 products are clearly faster here than MKL's.

    Tried out once a process, with the columns of a block: some milliseconds.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode():
        weight, x = torch.full((1024, 1024), 0.5), torch.full((_MOST_ROWS // 2, 1024), 0.5)
        works = [
            partial(_product, x, _packed(weight, by_onednn=which), weight, None, which)
            for which in (False, True)
        ]
        taken: list[list[float]] = [[], []]
        for _ in range(7):  # in turns, as others use the machine too
            for work, seconds in zip(works, taken, strict=True):
                began = perf_counter()
                work()
                seconds.append(perf_counter() - began)
    return min(taken[0]) >= _CLEARLY * min(taken[1])


def _packed(weight: Tensor, *, by_onednn: bool) -> Tensor:
    library = torch.ops.mkldnn if by_onednn else torch.ops.mkl
    name = "_reorder_linear_weight" if by_onednn else "_mkl_reorder_linear_weight"
    packed: Tensor = getattr(library, name)(weight.contiguous(), _MOST_ROWS // 2)
    return packed


def _product(
    x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, by_onednn: bool
) -> Tensor:
    rows = x.reshape(-1, weight.shape[1])
    if by_onednn:
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    elif len(rows) <= _MOST_ROWS:
        product = torch.ops.mkl._mkl_linear(rows, packed, weight, bias, len(rows))
    else:
        return F.linear(x, weight, bias)
    return product.view(*x.shape[:-1], weight.shape[0])


# Compilers know only products whose packed weight is a constant of what they compile; a layer that
# is compiled once for all layers gets it as an input, so they are shown an operation of our own.
_LIBRARY = torch.library.Library("dllm", "DEF")
_LIBRARY.define(
    "packed_product(Tensor x, Tensor packed, Tensor weight, Tensor? bias, bool by_onednn) -> Tensor"
)
_LIBRARY.impl("packed_product", _product, "CompositeExplicitAutograd")


@torch.library.register_fake("dllm::packed_product", lib=_LIBRARY)
def _shape(
    x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, by_onednn: bool
) -> Tensor:
    del packed, bias, by_onednn
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def pack(network: nn.Module) -> None:
    """Puts a packed layer in the place of every linear layer, in place.

    Takes the memory of the weights once more. Raises ValueError
    where the weights are not on a CPU or the CPU's libraries have no such products.
    """
    check_pack(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear) and not isinstance(part, PackedLinear):
                setattr(module, name, PackedLinear.of(part))


def check_pack(network: nn.Module, device: torch.device | None = None) -> None:
    """Raises ValueError, with the reason, for a network that cannot be packed.

    `device` is where it will be; None: where it is.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            _check(module.weight.dtype, device or module.weight.device)


def _check(dtype: torch.dtype, device: torch.device) -> None:
    if device.type != "cpu":
        raise ValueError(f"weights on {device} cannot be packed: that is for a CPU")
    if dtype == torch.float32:
        if not has_mkl():
            raise ValueError("float32 weights cannot be packed: this torch comes without MKL")
        return
    if dtype == torch.bfloat16:
        if not runs_bfloat16():
            raise ValueError(
                "bfloat16 weights cannot be packed: this CPU has no bfloat16 arithmetic "
                "(AVX512-BF16 or AMX); take float32, which is also faster here"
            )
        return
    raise ValueError(f"weights in {dtype} cannot be packed: only float32 and bfloat16")
