"""The Triton kernel of silu(gate) * up, the middle of a gated feed-forward layer.

Plain PyTorch has the same in `models/layers.py`, in `SwiGLU`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dllm.kernels.rounding import rounded

_BLOCK = 1024


@triton.jit
def _kernel(  # noqa: PLR0913 a kernel takes its tensors one by one
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    width: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Writes a part of a row; silu is rounded before it is multiplied."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    dtype = out.dtype.element_ty
    opening = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(tl.float32)
    opened = rounded(opening / (1.0 + tl.exp(-opening)), dtype)
    tl.store(out + row * width + at, rounded(opened * value, dtype).to(dtype), mask=inside)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Returns silu(gate) * up, each (..., width); they may be halves of one tensor."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    width = gate.shape[-1]
    if out.numel():
        flat_gate, flat_up = _rows(gate), _rows(up)
        _kernel[(flat_gate.shape[0], triton.cdiv(width, _BLOCK))](
            flat_gate,
            flat_up,
            out,
            width,
            flat_gate.stride(0),
            flat_up.stride(0),
            block=_BLOCK,
            enable_fp_fusion=False,  # roundings are those of one operation after the other
        )
    return out


def _rows(x: Tensor) -> Tensor:
    """Returns a tensor (..., width) as rows (n, width); a view where its memory allows one."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()
