"""Which tokens of a target are masked together to estimate its likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Ways to mask a target of n tokens, and the weight of each one's summed loss."""

    masked: Tensor  # (D, n) bool
    weight: Tensor  # (D,) float64
    exact: bool  # these are all the ways there are


def draw(length: int, count: int, seed: int) -> Draws:
    """Returns `count` ways to mask a target, or all there are if they are not more.

    log p >= -E[n/k * loss of k masked tokens], with k uniform in 1..n and the k tokens uniform as
    well (arXiv 2502.09992, equation 6). All 2**n - 1 ways with their probabilities give the
    expectation itself. Sampled counts are spread over 1..n from a random first one
    (ML-GSAI/LLaDA eval_llada.py), but in whole steps: rounding half a step to the even number, as
    there, would favour even counts.
    """
    if length <= count.bit_length() and 2**length - 1 <= count:
        ways = (torch.arange(1, 2**length)[:, None] >> torch.arange(length)) & 1
        sizes = ways.sum(1)
        alike = torch.tensor([math.comb(length, int(size)) for size in sizes], dtype=torch.float64)
        return Draws(ways.bool(), 1 / (sizes * alike), exact=True)
    source = torch.Generator().manual_seed(seed)
    first = torch.randint(length, (), generator=source)
    sizes = (first + torch.arange(count) * length // count) % length + 1
    places = torch.rand(count, length, generator=source).argsort(1)
    return Draws(places < sizes[:, None], length / (sizes.double() * count), exact=False)
