"""Certainty density: how much of the text around a column is there already."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def decoded_share(
    decoded: Tensor, offset: Tensor, num_slots: Tensor, sigma: float, dtype: torch.dtype
) -> Tensor:
    """Returns the share of decoded columns around each, weighted by a Gaussian, (B, W) in [0, 1].

    `decoded` (B, W) bool are slots, at `offset` (B, W) int64 after the prompt, of `num_slots` (B,)
    in all; `sigma` is in columns. All that precedes the slots counts as decoded, and what follows
    them as the last slot is (arXiv 2509.23094; Kamichanw/d2Cache src/utils/common.py).
    """
    width, device = decoded.shape[1], decoded.device
    reach = width + math.ceil(8 * sigma)  # what is further away weighs less than 1e-14
    distance = torch.arange(reach, device=device, dtype=dtype)
    weight = torch.exp(-0.5 * (distance / sigma).square())
    beyond = weight.flip(0).cumsum(0).flip(0)  # of all columns that are so far away or further
    places = torch.arange(width, device=device)
    nearby = decoded.to(dtype) @ weight[(places[:, None] - places).abs()]
    after = num_slots[:, None] - offset  # distance to the end
    before = beyond[(offset + 1).clamp(0, width)]
    behind = beyond[after.clamp(0, width)]
    ended = (decoded & (after == 1)).any(1, keepdim=True)
    return (nearby + before + torch.where(ended, behind, 0)) / (2 * beyond[0] - 1)
