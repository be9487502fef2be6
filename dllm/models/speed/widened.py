"""Products of 16-bit weights on a CPU without arithmetic for them: widened part by part.

Weights stay as they are in memory. A product turns some rows of the weight at a time into float32,
in a piece of memory that all layers use anew, and multiplies there. Sums are those of float32, and
are rounded once at the end, as those of a product in 16 bits.

A library lays the second factor of a product out anew before it multiplies, by which a block's few
rows lose a fifth of their time if that is the weight. So the weight is the first factor here, and
the rows are laid out, once for all parts of the weight; what comes out is transposed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Bytes of float32 weights at a time: what a processor's last cache holds beside all else.
PART = 4 * 2**20

# Rows of a product up to which the product in 16 bits is faster: it reads the weights once and has
# little to compute (`python -m benchmarks.widened`).
FEW_ROWS = 4

NARROW = (torch.bfloat16, torch.float16)


class WidenedLinear(nn.Linear):
    """A linear layer whose 16-bit weight is multiplied in float32, some of its rows at a time."""

    @staticmethod
    def of(linear: nn.Linear) -> WidenedLinear:
        """Returns the layer with the parameters of `linear`, which are not copied."""
        layer = WidenedLinear(1, 1, bias=False, device="meta")
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Returns input (..., in) times the weight, plus the bias, (..., out)."""
        num_rows = x.numel() // x.shape[-1]
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if num_rows <= FEW_ROWS or learns:
            return F.linear(x, self.weight, self.bias)
        return widened_product(x, self.weight, self.bias)


def widened_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x (..., in) times a weight (out, in), plus the bias (out,), in the dtype of x."""
    num_outputs, num_inputs = weight.shape
    rows = x.reshape(-1, num_inputs).float()
    out = x.new_empty(len(rows), num_outputs)
    part = min(max(PART // (4 * num_inputs), 1), num_outputs)
    memory, times_rows = _BUFFER.room(part * num_inputs), _multiplier(rows, part)
    for start in range(0, num_outputs, part):
        narrow = weight[start : start + part]
        wide = memory[: narrow.numel()].view_as(narrow)
        wide.copy_(narrow)
        sums = times_rows(wide)
        if bias is not None:
            sums += bias[start : start + part, None]
        out[:, start : start + part] = sums.t()
    return out.view(*x.shape[:-1], num_outputs)


def _multiplier(rows: Tensor, part: int) -> Callable[[Tensor], Tensor]:
    """Returns what multiplies float32 weights (m, in) by rows (n, in), (m, n).

    By oneDNN wherever torch has it, and not by a trial: near a tie two processes would round in two
    ways. In this direction oneDNN was the faster one on each CPU that was measured.
    """
    if not torch.backends.mkldnn.is_available():
        return lambda weight: weight @ rows.t()
    packed = torch.ops.mkldnn._reorder_linear_weight(rows, part)
    run = torch.ops.mkldnn._linear_pointwise
    return lambda weight: run(weight, packed, None, "none", [], "")


class _Buffer(threading.local):
    """Memory that a thread's products write widened weights to, one after the other."""

    memory: Tensor | None = None

    def room(self, size: int) -> Tensor:
        """Returns the first `size` numbers of it, float32."""
        if self.memory is None or len(self.memory) < size:
            with torch.inference_mode(False):  # it is written to inside of that mode and outside
                self.memory = torch.empty(size, dtype=torch.float32, device="cpu")
        return self.memory[:size]


_BUFFER = _Buffer()


def widen(network: nn.Module) -> None:
    """Puts a widened layer in the place of every linear layer, in place; no weight is copied."""
    check_widen(network)
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear) and not isinstance(part, WidenedLinear):
                setattr(module, name, WidenedLinear.of(part))


def check_widen(network: nn.Module, device: torch.device | None = None) -> None:
    """Raises ValueError, with the reason, for a network whose weights cannot be widened.

    `device` is where it will be; None: where it is.
    """
    for module in network.modules():
        if not isinstance(module, nn.Linear):
            continue
        where, dtype = device or module.weight.device, module.weight.dtype
        if where.type != "cpu":
            raise ValueError(f"weights on {where} are not widened: that is for a CPU")
        if dtype not in NARROW:
            raise ValueError(f"weights in {dtype} are not widened: only bfloat16 and float16")
