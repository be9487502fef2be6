"""Statistics of logits over long vocabularies: one Triton pass on CUDA, chunk by chunk on a CPU.

A CPU finds the largest number alone several times faster than its place or the second largest, so
these are looked for in the best chunk only. Sums are of a few terms in float32, then in float64:
how a CPU's registers group a long float32 sum must not decide what a threshold compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_MANY = 4096  # tokens of a vocabulary from which on chunks pay
_CHUNK = 128
_TERMS = 16  # of a float32 sum


@dataclass(frozen=True)
class Statistics:
    """Of each row of logits; float32, and NaN in a row that holds NaN."""

    token: Tensor  # (B, w) int64 most probable token but the mask; the lowest of equal ones
    logit: Tensor  # (B, w) of that token
    first: Tensor  # (B, w) largest logit, that of the mask token included
    second: Tensor  # (B, w) second largest, the same as the first where two are equal
    total: Tensor  # (B, w) sum of exp(logit - first)
    entropy: Tensor  # (B, w) nats

    @property
    def normaliser(self) -> Tensor:
        """The log of the summed exponentials, (B, w)."""
        return torch.where(self.first.isinf(), self.first, self.first + self.total.log())

    def at(self, index: Tensor) -> Statistics:
        """Returns those of the rows `index` (B, n) of each batch row."""
        return Statistics(*(value.gather(1, index) for value in vars(self).values()))

    def of_rows(self, rows: Tensor) -> Statistics:
        """Returns those of some batch rows (n,) int64."""
        return Statistics(*(value[rows] for value in vars(self).values()))


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the kernel runs on a device: CUDA, with Triton installed."""
    return device.type == "cuda" and find_spec("triton") is not None


def in_one_pass(logits: Tensor, mask_token_id: int) -> Statistics:
    """Returns the statistics of logits (B, w, V) by the Triton kernel."""
    # Triton is optional, and is only there where CUDA is.
    from dllm.kernels.triton_statistics import measure

    token, numbers = measure(logits, mask_token_id)
    return Statistics(token, *numbers)


def in_torch(logits: Tensor, mask_token_id: int) -> Statistics:
    """Returns the same, operation by operation; float64 of float64 logits."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    proposed = wide.clone()
    proposed[..., mask_token_id] = -torch.inf
    logit, token = proposed.max(-1)
    # Where nothing else is possible, the mask token would be the lowest of equal ones.
    token = torch.where(token == mask_token_id, int(mask_token_id == 0), token)
    first, second = wide.topk(2, dim=-1).values.unbind(-1)
    total = total_weight(wide, first)
    numbers = (logit, first, second, total, entropy(wide, first, total))
    broken = wide.isnan().any(-1)
    numbers = tuple(number.to(wide.dtype).masked_fill(broken, torch.nan) for number in numbers)
    return Statistics(token, *numbers)


def total_weight(logits: Tensor, largest: Tensor) -> Tensor:
    """Returns the sum of exp(logit - largest) of logits (..., V), (...) float64."""
    return _summed((logits - largest[..., None]).exp_())


def entropy(logits: Tensor, largest: Tensor, total: Tensor) -> Tensor:
    """Returns the entropy of logits (..., V) in nats, (...) float64.

    From differences to the largest logit, so that a sure distribution, whose most probable token
    is at 0, keeps its small entropy; and without a logarithm for each token.
    """
    below = (logits - largest[..., None]).clamp_(min=-1e4)  # nats; finite, so that it times 0 is 0
    return total.log() - _summed(below.exp().mul_(below)) / total


def softmax(logits: Tensor) -> Tensor:
    """Returns the probabilities of logits (..., V), in their dtype and to a few ulps."""
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()
    return weight.div_(_summed(weight)[..., None].to(weight.dtype))


def largest_but(logits: Tensor, but: int) -> Tensor:
    """Returns where the largest logit (..., V) but one is, (...) int64; of equal ones the first."""
    if not _pays(logits):
        return _largest_of_parts(logits, but)
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
    """Returns the two largest logits (..., V), (..., 2), the same twice where two are equal."""
    if not _pays(logits):
        return logits.topk(2, dim=-1).values
    largest = _of_chunks(logits)
    first = largest.argmax(-1, keepdim=True)
    columns, last = _columns(first), logits.shape[-1] - 1
    chunk = logits.gather(-1, columns.clamp(max=last)).masked_fill(columns > last, -torch.inf)
    others = largest.scatter(-1, first, -torch.inf).amax(-1, keepdim=True)
    return torch.cat([chunk, others], -1).topk(2, dim=-1).values


def _largest_of_parts(logits: Tensor, but: int) -> Tensor:
    """Returns the same as `largest_but` in two parts: a copy would cost more than all the rest."""
    if but == logits.shape[-1] - 1:
        return logits[..., :but].max(-1).indices
    if but == 0:
        return logits[..., 1:].max(-1).indices + 1
    low, high = logits[..., :but].max(-1), logits[..., but + 1 :].max(-1)
    # A number that is none is kept, as it is in a maximum over all.
    later = (high.values > low.values) | (high.values.isnan() & ~low.values.isnan())
    return torch.where(later, high.indices + but + 1, low.indices)


def _pays(logits: Tensor) -> bool:
    """Whether logits (..., V) are on a CPU and long enough for chunks."""
    return logits.device.type == "cpu" and logits.shape[-1] >= _MANY


def _summed(values: Tensor) -> Tensor:
    """Returns the sums of values (..., V), (...) float64."""
    if values.dtype == torch.float64 or not _pays(values):
        return values.sum(-1, dtype=torch.float64)
    whole = values.shape[-1] // _TERMS * _TERMS
    parts = values[..., :whole].unflatten(-1, (_TERMS, -1)).sum(-2)
    return parts.sum(-1, dtype=torch.float64) + values[..., whole:].sum(-1, dtype=torch.float64)


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
