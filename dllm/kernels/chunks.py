"""Largest logits of long rows on a CPU: first those of each chunk, then those in the best chunk.

A CPU finds the largest number alone several times faster than its place or the second largest. What
is returned is the same, bit by bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MANY = 4096  # tokens of a vocabulary from which on chunks pay
_CHUNK = 128


def pays(logits: Tensor) -> bool:
    """Whether logits (..., V) are on a CPU and long enough."""
    return logits.device.type == "cpu" and logits.shape[-1] >= _MANY


def largest_but(logits: Tensor, but: int) -> Tensor:
    """Returns where the largest logit but one is, (...) int64; of equal ones the first."""
    largest, own = _of_chunks(logits), but // _CHUNK
    beside = logits[..., own * _CHUNK : (own + 1) * _CHUNK].clone()
    beside[..., but % _CHUNK] = -torch.inf
    largest[..., own] = beside.amax(-1)
    columns = _columns(largest.argmax(-1, keepdim=True)).clamp(max=logits.shape[-1] - 1)
    chunk = logits.gather(-1, columns).masked_fill(columns == but, -torch.inf)
    token = columns.gather(-1, chunk.argmax(-1, keepdim=True)).squeeze(-1)
    # Where nothing else is possible, the one left out would be the first of equal ones.
    return torch.where(token == but, int(but == 0), token)


def largest_two(logits: Tensor) -> Tensor:
    """Returns the two largest logits, (..., 2), the same twice where two are equal."""
    largest = _of_chunks(logits)
    first = largest.argmax(-1, keepdim=True)
    columns, last = _columns(first), logits.shape[-1] - 1
    chunk = logits.gather(-1, columns.clamp(max=last)).masked_fill(columns > last, -torch.inf)
    others = largest.scatter(-1, first, -torch.inf).amax(-1, keepdim=True)
    return torch.cat([chunk, others], -1).topk(2, dim=-1).values


def _of_chunks(logits: Tensor) -> Tensor:
    """Returns the largest logit of each chunk, (..., n)."""
    whole = logits.shape[-1] // _CHUNK * _CHUNK
    largest = logits[..., :whole].unflatten(-1, (-1, _CHUNK)).amax(-1)
    if whole == logits.shape[-1]:
        return largest
    return torch.cat([largest, logits[..., whole:].amax(-1, keepdim=True)], -1)


def _columns(chunk: Tensor) -> Tensor:
    """Returns the columns of a chunk (..., 1), (..., n); some of the last one may not be there."""
    return chunk * _CHUNK + torch.arange(_CHUNK, device=chunk.device)
