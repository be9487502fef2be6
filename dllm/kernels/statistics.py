"""What a step reads off logits, in one pass over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Of each row of logits; float32, and NaN in a row that holds NaN."""

    token: Tensor  # (B, w) int64 most probable token but the mask; the lowest of equal ones
    logit: Tensor  # (B, w) of that token
    first: Tensor  # (B, w) largest logit, that of the mask token included
    second: Tensor  # (B, w) second largest, the same as the first where two are equal
    normaliser: Tensor  # (B, w) log of the summed exponentials
    entropy: Tensor  # (B, w) nats

    def at(self, index: Tensor) -> Statistics:
        """Returns those of the rows `index` (B, n) of each batch row."""
        return Statistics(*(value.gather(1, index) for value in vars(self).values()))

    def of_rows(self, rows: Tensor) -> Statistics:
        """Returns those of some batch rows (n,) int64."""
        return Statistics(*(value[rows] for value in vars(self).values()))


def statistics(logits: Tensor, mask_token_id: int) -> Statistics:
    """Returns the statistics of logits (B, w, V), by the kernel where there is one."""
    found = in_one_pass if has_kernel(logits.device) else in_torch
    return found(logits, mask_token_id)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the kernel runs on a device: CUDA, with Triton installed."""
    return device.type == "cuda" and find_spec("triton") is not None


def in_one_pass(logits: Tensor, mask_token_id: int) -> Statistics:
    """Returns the statistics by the Triton kernel."""
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
    probability = wide.softmax(-1)
    entropy = torch.special.entr(probability).sum(-1)
    numbers = (logit, first, second, wide.logsumexp(-1), entropy)
    broken = wide.isnan().any(-1)
    return Statistics(token, *(number.masked_fill(broken, torch.nan) for number in numbers))
