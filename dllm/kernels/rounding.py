"""Rounding inside Triton's kernels, to the nearest as torch does it on every device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Returns float32 numbers rounded to a dtype, still in float32.

    By the bits for bfloat16: Triton's interpreter cuts them off, so that tests would see other
    numbers than a device.
    """
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits >> 16) & 1  # ties go to the even neighbour
        near = (bits + 0x7FFF + even) & 0xFFFF0000
        return tl.where(x == x, near.to(tl.float32, bitcast=True), x)  # only NaN differs
    else:
        return x.to(dtype).to(tl.float32)
