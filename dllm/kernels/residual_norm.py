"""The Triton kernel of a residual sum and the RMSNorm behind it: one program a row.

Plain PyTorch has the same in `models/layers.py`: `Block` adds, `RMSNorm` norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm.kernels.rounding import rounded

_BLOCK = 4096  # elements that a program looks at together
_NARROW = 1024  # elements up to which fewer warps suffice


@dataclass(frozen=True)
class Norm:
    """An RMSNorm by its numbers."""

    weight: Tensor  # (width,)
    eps: float
    multiply_first: bool  # by the weight before the result is rounded, as `NetworkConfig` has it


@triton.jit
def _kernel(  # noqa: PLR0913 a kernel takes its tensors one by one
    x: tl.tensor,
    branch: tl.tensor,
    weight: tl.tensor,
    sum_out: tl.tensor,
    normed_out: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    adds: tl.constexpr,
    multiply_first: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Writes a row of x + branch, rounded, and its norm.

    The sum is made anew where it is normed: what other threads of a program have written to
    memory need not be there yet.
    """
    start = tl.program_id(0).to(tl.int64) * width
    lane = tl.arange(0, block)
    dtype = normed_out.dtype.element_ty
    squares = tl.zeros((block,), tl.float32)
    for first in range(0, width, block):
        at = first + lane
        inside = at < width
        value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
        if adds:
            value += tl.load(branch + start + at, mask=inside, other=0.0).to(tl.float32)
            value = rounded(value, dtype)
            tl.store(sum_out + start + at, value.to(dtype), mask=inside)
        squares += value * value
    scale = tl.rsqrt(tl.sum(squares, 0) / width + eps)
    for first in range(0, width, block):
        at = first + lane
        inside = at < width
        value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
        if adds:
            value += tl.load(branch + start + at, mask=inside, other=0.0).to(tl.float32)
            value = rounded(value, dtype)
        normed = value * scale
        factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        if not multiply_first:
            normed = rounded(normed, dtype)
        tl.store(normed_out + start + at, rounded(factor * normed, dtype).to(dtype), mask=inside)


def add_and_norm(x: Tensor, branch: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Returns x + branch, both (..., width), and its norm; without a branch x itself."""
    x = x.contiguous()
    branch = None if branch is None else branch.contiguous()
    summed, normed = x if branch is None else torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    block = min(triton.next_power_of_2(width), _BLOCK)
    if x.numel():
        _kernel[(x.numel() // width,)](
            x,
            x if branch is None else branch,
            norm.weight,
            summed,
            normed,
            width,
            norm.eps,
            adds=branch is not None,
            multiply_first=norm.multiply_first,
            block=block,
            num_warps=4 if block <= _NARROW else 8,
            enable_fp_fusion=False,  # roundings are those of one operation after the other
        )
    return summed, normed
