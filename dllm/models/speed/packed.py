"""Weights laid out once as a CPU's matrix products read them, instead of in every product."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Rows of a product up to which a packed weight is faster in float32; longer ones, as of a prompt,
# have enough arithmetic to hide the work of packing.
_MOST_ROWS = 64


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight; the usual one stays for long products."""

    packed: Tensor

    @staticmethod
    def of(linear: nn.Linear) -> PackedLinear:
        """Returns the layer with a packed copy; its parameters are those of `linear`."""
        layer = PackedLinear(1, 1, bias=False, device="meta")
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        pack = _pack_float32 if linear.weight.dtype == torch.float32 else _pack_narrow
        layer.packed = pack(linear.weight.detach())
        return layer.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Returns input (..., in) times the weight, plus the bias, (..., out)."""
        run = torch.ops.dllm.packed_product if torch.compiler.is_compiling() else _product
        product: Tensor = run(x, self.packed, self.weight, self.bias)
        return product


def _product(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, weight.shape[1])
    if weight.dtype != torch.float32:
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    elif len(rows) <= _MOST_ROWS:
        product = torch.ops.mkl._mkl_linear(rows, packed, weight, bias, len(rows))
    else:
        return F.linear(x, weight, bias)
    return product.view(*x.shape[:-1], weight.shape[0])


# Compilers know only products whose packed weight is a constant of what they compile; a layer that
# is compiled once for all layers gets it as an input, so they are shown an operation of our own.
_LIBRARY = torch.library.Library("dllm", "DEF")
_LIBRARY.define("packed_product(Tensor x, Tensor packed, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.impl("packed_product", _product, "CompositeExplicitAutograd")


@torch.library.register_fake("dllm::packed_product", lib=_LIBRARY)
def _shape(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del packed, bias
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def pack(network: nn.Module) -> None:
    """Puts a packed layer in the place of every linear layer, in place.

    Takes the memory of the weights once more (float32: half as much again). Raises ValueError
    where the weights are not on a CPU or the CPU's libraries have no such products.
    """
    check_pack(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear) and not isinstance(part, PackedLinear):
                setattr(module, name, PackedLinear.of(part))


def check_pack(network: nn.Module) -> None:
    """Raises ValueError, with the reason, for a network that cannot be packed."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            _check(module.weight)


def _check(weight: Tensor) -> None:
    if weight.device.type != "cpu":
        raise ValueError(f"weights on {weight.device} cannot be packed: that is for a CPU")
    if weight.dtype == torch.float32:
        if not hasattr(torch.ops.mkl, "_mkl_linear") or not torch.backends.mkl.is_available():
            raise ValueError("float32 weights cannot be packed: this torch comes without MKL")
        return
    if weight.dtype == torch.bfloat16:
        if not _has_bfloat16():
            raise ValueError(
                "bfloat16 weights cannot be packed: this CPU has no bfloat16 arithmetic "
                "(AVX512-BF16 or AMX); take float32, which is also faster here"
            )
        return
    raise ValueError(f"weights in {weight.dtype} cannot be packed: only float32 and bfloat16")


def _has_bfloat16() -> bool:
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and known is not None and bool(known())


def _pack_float32(weight: Tensor) -> Tensor:
    return torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), _MOST_ROWS // 2)


def _pack_narrow(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _MOST_ROWS // 2)
