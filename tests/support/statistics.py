"""Random logits, and their statistics in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.kernels.statistics import Statistics
from dllm.state.softmax import entropy_of, largest_but, largest_two, total_weight

NUMBERS = ("logit", "first", "second", "normaliser", "entropy")
NARROW = (torch.float32, torch.bfloat16, torch.float16)


def random_logits(*size: int, seed: int = 0) -> Tensor:
    return 6 * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Statistics, logits: Tensor, mask: int, atol: float = 3e-6) -> None:
    """Compares with what float64 gives, operation by operation."""
    wide = logits.cpu().double()
    proposed = wide.clone()
    proposed[..., mask] = -torch.inf
    top2 = wide.topk(2, dim=-1).values
    probability = wide.softmax(-1)
    expected = {
        "logit": proposed.max(-1).values,
        "first": top2[..., 0],
        "second": top2[..., 1],
        "normaliser": wide.logsumexp(-1),
        "entropy": torch.special.entr(probability).sum(-1),
    }
    equal = wide == proposed.max(-1, keepdim=True).values
    equal[..., mask] = False
    assert torch.equal(found.token.cpu(), equal.int().argmax(-1))
    for name in NUMBERS:
        value = getattr(found, name)
        assert value.dtype == torch.float32
        if name in ("logit", "first", "second"):
            assert torch.equal(value.cpu().double(), expected[name])
        else:
            torch.testing.assert_close(value.cpu().double(), expected[name], rtol=1e-6, atol=atol)


def in_torch(logits: Tensor, mask_token_id: int) -> Statistics:
    """Returns what candidates make of logits without the kernel, as the kernel has it."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    token, (first, second) = largest_but(wide, mask_token_id), largest_two(wide).unbind(-1)
    total = total_weight(wide, first)
    logit = wide.gather(-1, token[..., None]).squeeze(-1)
    numbers = (logit, first, second, total, entropy_of(wide, first, total))
    broken = wide.isnan().any(-1)
    return Statistics(token, *(n.to(wide.dtype).masked_fill(broken, torch.nan) for n in numbers))
