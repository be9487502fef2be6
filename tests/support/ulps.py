"""How far results in a narrow dtype are from each other, in steps of the dtype."""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_STEPS = 4  # of float32: the order of a sum, a root, an exponential


def assert_rounds_alike(found: Tensor, expected: Tensor, num_roundings: int = 1) -> None:
    """Compares numbers that were computed in float32 in another order, then rounded.

    In 16 bits nearly all are equal; where the float32 number lies at the border of two, each later
    rounding may take it a step further.
    """
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    found, expected = found.cpu(), expected.cpu()
    steps = FLOAT_STEPS if found.dtype == torch.float32 else num_roundings
    tolerance = steps * torch.finfo(found.dtype).eps
    # Where two products cancel, what is left has the error of the products.
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    floor = torch.finfo(found.dtype).eps * largest + torch.finfo(found.dtype).smallest_normal
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=floor)
    if found.dtype != torch.float32 and found.numel() > 100:
        assert (found == expected).float().mean() > 0.98
