"""Softmax and its statistics to a few ulps: how a CPU groups its sums must not decide anything."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dllm.kernels import statistics as kernel
from dllm.kernels.statistics import Sum

_LOG2_E = math.log2(math.e)
IMPOSSIBLE = -1e4  # nats; finite, so that it times 0 is 0
_MANY = 4096  # tokens of a vocabulary from which on chunks pay


def without(logits: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """Returns logits (..., V) in which some tokens are impossible."""
    if not token_ids:
        return logits
    logits = logits.clone()
    for token in token_ids:  # a few, known to the host: an index tensor would be a transfer
        logits.select(-1, token).fill_(-torch.inf)
    return logits


def total_weight(logits: Tensor, largest: Tensor) -> Tensor:
    """Returns the sum of exp(logit - largest) of logits (..., V), (...) float64."""
    return summed(exponential_(logits - largest[..., None]))


def entropy_of(logits: Tensor, largest: Tensor, total: Tensor) -> Tensor:
    """Returns the entropy of logits (..., V) in nats, (...) float64.

    From differences to the largest logit, so that a sure distribution, whose most probable token
    is at 0, keeps its small entropy; and without a logarithm for each token.
    """
    below = logits - largest[..., None]
    return _nats(exponential(below).mul_(below), total)


def total_and_entropy(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `total_weight` and `entropy_of`, whose exponentials are the same."""
    below = logits - largest[..., None]
    weight = exponential(below)
    total = summed(weight)
    return total, _nats(weight.mul_(below), total)


def _nats(products: Tensor, total: Tensor) -> Tensor:
    """Returns the entropy from weights times their logarithms (..., V) and the weights' sum (...).

    A token of -inf adds nothing, though 0 times -inf is not a number; where a logit itself is
    none, neither is the total.
    """
    return total.log() - summed(products, torch.nansum) / total


def softmax(logits: Tensor) -> Tensor:
    """Returns the probabilities of logits (..., V), in their dtype and to a few ulps."""
    weight = exponential_(logits - logits.amax(-1, keepdim=True))
    return weight.div_(summed(weight)[..., None].to(weight.dtype))


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Drops the tokens after the one with which the cumulated probability passes `top_p`."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = softmax(ordered).double()  # summed up to what `top_p` is compared with
    before = probability.cumsum(-1) - probability
    ordered = ordered.masked_fill(before > top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def chunks_of(logits: Tensor) -> Tensor | None:
    """Returns the largest logit of each chunk of logits (..., V), (..., n), where that helps."""
    return kernel.chunks_of(logits) if _is_long(logits) else None


def largest_but(logits: Tensor, but: int, chunks: Tensor | None = None) -> Tensor:
    """Returns where the largest logit (..., V) but one is, (...) int64; of equal ones the first.

    `chunks` are those of the logits, if they are known.
    """
    chunks = chunks_of(logits) if chunks is None else chunks
    if chunks is None:
        token = without(logits, (but,)).argmax(-1)
    else:
        token = kernel.largest_but(logits, but, chunks)
    # Where nothing else is possible, the first of equal ones is 0, and may be the one left out.
    return token if but else torch.where(token == 0, 1, token)


def largest_two(logits: Tensor, chunks: Tensor | None = None) -> Tensor:
    """Returns the two largest logits (..., V), (..., 2), the same twice where two are equal.

    `chunks` are those of the logits, if they are known.
    """
    chunks = chunks_of(logits) if chunks is None else chunks
    if chunks is None:
        return logits.topk(2, dim=-1).values
    return kernel.largest_two(logits, chunks)


def _is_long(logits: Tensor) -> bool:
    """Whether a CPU reads logits (..., V) several times faster chunk by chunk."""
    return logits.device.type == "cpu" and logits.shape[-1] >= _MANY


def summed(values: Tensor, by: Sum = torch.sum) -> Tensor:
    """Returns the sums of values (..., V), (...) float64.

    How a CPU's registers group a long float32 sum must not decide what a threshold compares.
    """
    exact = values.dtype == torch.float64 or not _is_long(values)
    return by(values, -1, dtype=torch.float64) if exact else kernel.summed(values, by)


def exponential(values: Tensor) -> Tensor:
    """Returns the exponentials of values (..., V), to a few ulps.

    A CPU raises 2 to a float32 power up to four times faster than e. The rounding of the exponent
    is below the least probability that counts: of a sum of exponentials it moves the last bit.
    """
    return values.exp() if _is_exact(values) else values.mul(_LOG2_E).exp2_()


def exponential_(values: Tensor) -> Tensor:
    """Replaces values by the same, and returns them."""
    return values.exp_() if _is_exact(values) else values.mul_(_LOG2_E).exp2_()


def _is_exact(values: Tensor) -> bool:
    """Whether exponentials are torch's own: of short rows, and in float64."""
    return values.dtype == torch.float64 or not _is_long(values)
