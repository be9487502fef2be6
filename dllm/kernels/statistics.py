"""Statistics of long rows of logits: in one Triton pass on CUDA, chunk by chunk on a CPU.

A CPU finds the largest number alone several times faster than its place or the second largest,
which are then looked for in the best chunk. What is returned is the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from dllm.kernels.draw import Draw

Sum = Callable[..., Tensor]  # torch.sum, or torch.nansum

_CHUNK = 128
_TERMS = 16  # of a float32 sum


@dataclass(frozen=True)
class Statistics:
    """Of each row of logits; float32, and NaN in a row that holds NaN."""

    token: Tensor  # (B, w) int64 most probable or drawn; not the mask; the lowest of equal ones
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


def in_one_pass(logits: Tensor, mask_token_id: int, draw: Draw | None = None) -> Statistics:
    """Returns the statistics of logits (B, w, V) by the Triton kernel; None: nothing is drawn."""
    # Triton is optional, and is only there where CUDA is.
    from dllm.kernels.triton_statistics import measure

    token, numbers = measure(logits, mask_token_id, draw)
    return Statistics(token, *numbers)


def largest_but(logits: Tensor, but: int, chunks: Tensor) -> Tensor:
    """Returns where the largest logit (..., V) but one is, (...) int64; of equal ones the first.

    `chunks` are those of the logits.
    """
    own = but // _CHUNK
    barred, there = _places_of(but, logits.shape[-1], logits.device)
    beside = logits[..., own * _CHUNK : (own + 1) * _CHUNK].masked_fill(barred, -torch.inf)
    largest = torch.where(there, beside.amax(-1, keepdim=True), chunks)
    columns = _columns(largest.argmax(-1, keepdim=True))
    if logits.shape[-1] % _CHUNK:
        columns = columns.clamp_(max=logits.shape[-1] - 1)
    chunk = logits.gather(-1, columns).masked_fill(columns == but, -torch.inf)
    return columns.gather(-1, chunk.argmax(-1, keepdim=True)).squeeze(-1)


@lru_cache(maxsize=64)
def numbers(count: int, device: torch.device) -> Tensor:
    """Returns 0, 1, ... (count,) int64, made once; nobody writes to it."""
    with torch.inference_mode(False):  # it is used inside of that mode and outside
        return torch.arange(count, device=device)


@lru_cache(maxsize=16)
def _places_of(token: int, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns where a token stands in its chunk, and where its chunk among all, bool."""
    own, size = token // _CHUNK, min(_CHUNK, vocab_size - token // _CHUNK * _CHUNK)
    with torch.inference_mode(False):  # as above
        in_chunk = numbers(size, device) == token % _CHUNK
        chunk = numbers(-(-vocab_size // _CHUNK), device) == own
    return in_chunk, chunk


def largest_two(logits: Tensor, chunks: Tensor) -> Tensor:
    """Returns the two largest logits (..., V), (..., 2), the same twice where two are equal."""
    first = chunks.argmax(-1, keepdim=True)
    columns, last = _columns(first), logits.shape[-1] - 1
    if logits.shape[-1] % _CHUNK:
        chunk = logits.gather(-1, columns.clamp(max=last)).masked_fill_(columns > last, -torch.inf)
    else:
        chunk = logits.gather(-1, columns)
    others = chunks.scatter(-1, first, -torch.inf).amax(-1, keepdim=True)
    return torch.cat([chunk, others], -1).topk(2, dim=-1).values


def summed(values: Tensor, by: Sum = torch.sum) -> Tensor:
    """Returns the sums of values (..., V), of a few terms in float32, then in float64."""
    whole = values.shape[-1] // _TERMS * _TERMS
    terms = by(values[..., :whole].unflatten(-1, (_TERMS, -1)), -2)
    parts = terms.sum(-1, dtype=torch.float64)
    if whole == values.shape[-1]:
        return parts
    return parts + by(values[..., whole:], -1, dtype=torch.float64)


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Returns the rows `index` (B, n) of values (B, w, V), (B, n, V), each copied whole."""
    first = numbers(values.shape[0], index.device)[:, None] * values.shape[1]
    chosen = values.flatten(0, 1).index_select(0, (first + index).flatten())
    return chosen.view(*index.shape, values.shape[-1])


def chunks_of(logits: Tensor) -> Tensor:
    """Returns the largest logit of each chunk, (..., n)."""
    whole = logits.shape[-1] // _CHUNK * _CHUNK
    largest = logits[..., :whole].unflatten(-1, (-1, _CHUNK)).amax(-1)
    if whole == logits.shape[-1]:
        return largest
    return torch.cat([largest, logits[..., whole:].amax(-1, keepdim=True)], -1)


def _columns(chunk: Tensor) -> Tensor:
    """Returns the columns of a chunk (..., 1), (..., n); some of the last one may not be there."""
    return numbers(_CHUNK, chunk.device).add(chunk, alpha=_CHUNK)
