"""Heads that share keys as queries of one head: the same attention, under every kind of mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dllm.models.layers import attend, attend_in_groups, explicit_attention, in_groups

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("num_shared", [1, 2, 3, 6])
@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_attention_in_groups(num_shared: int, queries: int, per_query: bool, added: bool) -> None:
    q = drawn(2, queries, 6, 8, seed=0)
    k, v = (drawn(2, 9, num_shared, 8, seed=seed) for seed in (1, 2))
    mask = drawn(2, queries if per_query else 1, 9, seed=3) > 0
    mask[..., 0] = True
    heads = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    expected = explicit_attention(*heads, mask[:, None])[0].transpose(1, 2)
    folded = in_groups(mask, 6 // num_shared)[:, None]
    if added:
        folded = torch.zeros(folded.shape, device=DEVICE).masked_fill(~folded, -torch.inf)
    torch.testing.assert_close(attend_in_groups(q, k, v, folded), expected)
    torch.testing.assert_close(attend(q, k, v, mask), expected)
    every = torch.ones_like(mask)
    torch.testing.assert_close(attend(q, k, v, None), attend(q, k, v, every))
