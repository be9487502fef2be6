"""Linear layers whose weights are laid out once as the products of a CPU read them."""

from __future__ import annotations

from functools import cache, partial
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dllm.models.speed.machine import has_mkl, runs_bfloat16

# Rows of a product up to which MKL's packed weight is faster in float32; longer ones, as of a
# prompt, have enough arithmetic to hide the work of packing.
_MOST_ROWS = 64

# How many times as fast as MKL oneDNN must be in a trial to be taken for float32, so that a machine
# takes the same one each time and rounds the same way. The two are alike on the CPUs of MKL's own
# maker; on an AMD EPYC (Zen 5) oneDNN is 2.2 to 2.4 times as fast, as MKL leaves the AVX-512 of
# others aside, and 1.26 to 1.32 times where it is held to AVX2.
_CLEARLY = 1.12


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
