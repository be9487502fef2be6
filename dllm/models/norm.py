"""The norm of every family."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm with statistics in float32, as every family's own code has it."""

    def __init__(self, width: int, eps: float, multiply_first: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.multiply_first = multiply_first

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.multiply_first:
            return (self.weight.float() * normed).to(x.dtype)
        return self.weight * normed.to(x.dtype)
