"""Linear layers whose weights are rounded to 8 or 4 bits, and the words that ask for them.

Numbers of 8 bits are integers, or floats of 4 bits of exponent and 3 of mantissa (`fp8`: e4m3,
arXiv 2209.05433).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = (32, 64, 128, 256)  # weights that may share a scale
GROUP = 64

_NAMES = ("int8", "int4", "fp8")
_FLOAT8 = torch.float8_e4m3fn
# Floats of 8 bits end at 448. As 1.75 neither they nor products with them, before the scale, leave
# the range of 16 bits; scales are larger by the same power of two.
_SHIFT = 2.0**-8

# Bytes of weights that a CPU widens at a time: what its last cache holds beside all else.
_PART = 4 * 2**20

_ROWS = 1024  # of a matrix that are rounded at a time, which takes several copies of them


@dataclass(frozen=True)
class Rounding:
    """How the weights of layers are rounded."""

    bits: int  # 8: with a scale for each row; 4: with a scale and a zero for each group
    group_size: int | None = None  # weights of a row that share a scale; None: the whole row
    floating: bool = False  # 8 bits that are floats, which are nearer where weights are small

    def __post_init__(self) -> None:
        allowed: tuple[int | None, ...] = {8: (None,), 4: GROUPS}.get(self.bits, ())
        if self.group_size not in allowed:
            raise ValueError(
                f"{self.bits} bits with group_size={self.group_size}: int8 has one scale a row, "
                f"and int4 takes group_size {', '.join(map(str, GROUPS))}"
            )
        if self.floating and self.bits != 8:
            raise ValueError(f"floats of {self.bits} bits: fp8 has 8")

    @property
    def kind(self) -> str:
        """The word for it without a size of groups."""
        return "fp8" if self.floating else f"int{self.bits}"

    @property
    def way(self) -> str:
        """The word for it, as in `speed=`."""
        usual = self.group_size in (None, GROUP)
        return self.kind if usual else f"{self.kind}:group_size={self.group_size}"

    def num_groups(self, width: int) -> int:
        """Returns how many scales a row of so many weights has."""
        return 1 if self.group_size is None else width // self.group_size


def parse_rounding(word: str) -> Rounding | None:
    """Returns what "int8", "fp8", "int4" or "int4:group_size=32" asks for; None: another way.

    Raises ValueError for options that it does not have.
    """
    name, colon, options = word.partition(":")
    if name not in _NAMES:
        return None
    if not colon:
        return Rounding(4, GROUP) if name == "int4" else Rounding(8, floating=name == "fp8")
    size = options.removeprefix("group_size=")
    if name != "int4" or size not in map(str, GROUPS):
        raise ValueError(
            f"speed={word!r}: int8 and fp8 have no options, one scale a row; int4 takes the "
            f"weights that share a scale, {', '.join(map(str, GROUPS))}, as in "
            f"'int4:group_size={GROUP}'"
        )
    return Rounding(4, int(size))


def rounding_of(ways: Sequence[str]) -> Rounding | None:
    """Returns the rounding among ways, None where there is none."""
    return next((found for way in ways if (found := parse_rounding(way))), None)


class RoundedLinear(nn.Module):
    """A linear layer whose weight is narrow numbers, which each product widens again."""

    # (out, in) int8, or uint8 that are the bits of floats, which no change of dtype then reads as
    # numbers; of 4 bits (out, in / 2) uint8, the halves of a group in a byte.
    packed: Tensor
    scale: Tensor  # (out, groups) in the dtype of the products
    zero: Tensor | None  # (out, groups) uint8, of 4 bits
    bias: Tensor | None

    def __init__(self, rounding: Rounding, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.rounding = rounding
        self.in_features, self.out_features = in_features, out_features
        groups, four = rounding.num_groups(in_features), rounding.bits == 4
        width = in_features // 2 if four else in_features
        kind = torch.uint8 if four or rounding.floating else torch.int8
        self.packed = _fixed(torch.empty(out_features, width, dtype=kind))
        self.scale = _fixed(torch.empty(out_features, groups))
        zero = torch.empty(out_features, groups, dtype=torch.uint8)
        self.zero = _fixed(zero) if four else None
        self.bias = _fixed(torch.empty(out_features)) if bias else None

    @staticmethod
    def of(linear: nn.Linear, rounding: Rounding) -> RoundedLinear:
        """Returns a layer with the rounded weight and the bias of another."""
        layer = RoundedLinear.empty(linear, rounding)
        weight = linear.weight.detach()
        parts = [_rounded(rows, rounding) for rows in weight.split(_ROWS)]
        layer.packed = _fixed(torch.cat([packed for packed, _, _ in parts]))
        layer.scale = _fixed(torch.cat([scale for _, scale, _ in parts]))
        if layer.zero is not None:
            layer.zero = _fixed(torch.cat([zero for _, _, zero in parts]))
        layer.bias = linear.bias
        return layer

    @staticmethod
    def empty(linear: nn.Linear, rounding: Rounding) -> RoundedLinear:
        """Returns a layer of the shape of another, without memory."""
        with torch.device("meta"):
            bias = linear.bias is not None
            layer = RoundedLinear(rounding, linear.in_features, linear.out_features, bias)
            return layer.to(linear.weight.dtype).eval()

    @staticmethod
    def joined(parts: Sequence[RoundedLinear]) -> RoundedLinear:
        """Returns one layer whose outputs are those of several, one after the other."""
        first, rows = parts[0], sum(part.out_features for part in parts)
        with torch.device("meta"):
            layer = RoundedLinear(first.rounding, first.in_features, rows, first.bias is not None)
        for name in dict(layer.named_parameters()):
            setattr(layer, name, _fixed(torch.cat([getattr(part, name) for part in parts])))
        return layer.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Returns input (..., in) times the weight, plus the bias, (..., out)."""
        return self.outputs(x, 0)

    def outputs(self, x: Tensor, start: int) -> Tensor:
        """Returns the outputs from `start` on, (..., out - start)."""
        packed, scale = self.packed[start:], self.scale[start:]
        zero = None if self.zero is None else self.zero[start:]
        # Compilers would unroll the parts of each weight; where there are none they see it all.
        hidden = torch.compiler.is_compiling() and x.device.type == "cpu"
        product: Tensor = (torch.ops.dllm.rounded_product if hidden else _product)(
            x, packed, scale, zero
        )
        return product if self.bias is None else product + self.bias[start:]

    def widened(self) -> Tensor:
        """Returns the weight (out, in) that it stands for, in the dtype of its products."""
        wide = _wide(self.packed, self.scale, self.zero)
        return wide * self.scale if self.zero is None else wide


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _rounded(weight: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the rows of a weight as they are kept, with scales and zeros (rows, groups)."""
    if rounding.floating:
        return _floated(weight)
    # An optional dependency, which `check_narrow` looks for.
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        quantize_affine,
    )

    eight = rounding.bits == 8
    size, width = rounding.group_size or weight.shape[1], weight.shape[1]
    kind = torch.int8 if eight else torch.uint8
    bounds = (-128, 127) if eight else (0, 15)
    scale, zero = choose_qparams_affine(
        weight,
        MappingType.SYMMETRIC if eight else MappingType.ASYMMETRIC,
        (1, size),
        kind,
        *bounds,
        eps=torch.finfo(torch.float32).eps,  # that of narrow dtypes would be a scale to be seen
        scale_dtype=weight.dtype,
        zero_point_dtype=kind,
    )
    whole = quantize_affine(weight, (1, size), scale, zero, kind, *bounds)
    scale, zero = (one.view(len(weight), width // size) for one in (scale, zero))
    if eight:
        return whole, scale, zero
    low, high = whole.view(len(weight), -1, 2, size // 2).unbind(2)
    return (low | high << 4).flatten(1), scale, zero


def _floated(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # An optional dependency, which `check_narrow` looks for.
    from torchao.quantization import Float8Tensor

    found = Float8Tensor.from_hp(weight, _FLOAT8)  # a scale for each row
    scale = (found.scale.float() / _SHIFT).to(weight.dtype).view(len(weight), 1)
    bits = found.qdata.view(torch.uint8)
    return bits.masked_fill(scale == 0, 0), scale, scale  # of a row of zeros torchao divides by 0


def check_floats(device: torch.device) -> None:
    """Raises ValueError where a device has no floats of 8 bits, which products would widen."""
    try:
        torch.zeros(1, dtype=torch.uint8, device=device).view(_FLOAT8).to(torch.float32)
    except (RuntimeError, TypeError, AssertionError) as error:  # the last where a build lacks CUDA
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"'fp8' keeps weights as floats of 8 bits, which torch {torch.__version__} does not "
            f"have on {device} ({reason}): take 'int8', whose size is the same"
        ) from None


def _wide(packed: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Returns rows (n, in) of a weight; of 8 bits without their scales."""
    if zero is None and packed.dtype == torch.uint8:
        return packed.view(_FLOAT8).to(scale.dtype).mul_(_SHIFT)
    if zero is None:
        return packed.to(scale.dtype)
    bits = packed.view(*scale.shape, -1)
    whole = torch.empty(*scale.shape, 2, bits.shape[-1], dtype=scale.dtype, device=scale.device)
    whole[:, :, 0], whole[:, :, 1] = bits & 15, bits >> 4
    whole.sub_(zero.to(scale.dtype)[..., None, None]).mul_(scale[..., None, None])
    return whole.view(len(scale), -1)


def _product(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    num_inputs = packed.shape[1] * (1 if zero is None else 2)
    part = len(packed)
    if x.device.type == "cpu":  # elsewhere fewer and larger operations are faster
        part = max(_PART // (num_inputs * scale.itemsize), 1)
    outputs = [
        F.linear(x, _wide(packed[rows], scale[rows], None if zero is None else zero[rows]))
        for rows in _slices(len(packed), part)
    ]
    product = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    return product * scale.flatten() if zero is None else product


def _slices(count: int, part: int) -> Iterable[slice]:
    return (slice(start, start + part) for start in range(0, count, part))


_LIBRARY = torch.library.Library("dllm", "FRAGMENT")
_LIBRARY.define("rounded_product(Tensor x, Tensor packed, Tensor scale, Tensor? zero) -> Tensor")
_LIBRARY.impl("rounded_product", _product, "CompositeExplicitAutograd")


@torch.library.register_fake("dllm::rounded_product", lib=_LIBRARY)
def _shape(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    del scale, zero
    return x.new_empty(*x.shape[:-1], packed.shape[0])
