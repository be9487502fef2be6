"""What is read off logits: tokens, statistics and ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dllm.state.candidates import Candidates, Sampling, best, rank
from dllm.state.noise import CounterNoise

KINDS = ("distinct", "ties", "not numbers", "impossible", "mask first")


def logits_of(kind: str, size: int, mask: int) -> Tensor:
    """Returns logits (2, 5, size) with what is easily got wrong."""
    logits = torch.randn(2, 5, size, generator=torch.Generator().manual_seed(size + mask))
    if kind == "ties":
        logits = logits.round()
    elif kind == "not numbers":
        logits[0, 3], logits[1, 2, mask], logits[1, 4, size // 3] = (torch.nan,) * 3
    elif kind == "impossible":
        logits[0, 3], logits[1, 3] = -torch.inf, -torch.inf
        logits[1, 3, mask] = 1
    elif kind == "mask first":
        logits[..., mask] = 50
    return logits


def expected(logits: Tensor, mask: int) -> Tensor:
    """Returns the most probable token but the mask, by a copy in which the mask is impossible."""
    logits = logits.clone()
    logits[..., mask] = -torch.inf
    token = logits.argmax(-1)
    return torch.where(token == mask, int(mask == 0), token)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [3, 500, 4096, 4097, 5000])
def test_the_best_token_is_never_the_mask(size: int, kind: str) -> None:
    for mask in sorted({0, 1, 127, 128, size // 2, size - 2, size - 1} & set(range(size))):
        logits, columns = logits_of(kind, size, mask), torch.arange(5).expand(2, 5)
        noise, step = CounterNoise(torch.tensor([0, 1])), torch.tensor([0, 0])
        token = Sampling(mask).propose(logits, noise, columns, step).token
        real = ~logits.isnan().any(-1) | (logits.isnan().sum(-1) == 1)
        own_nan = logits[..., mask].isnan()  # the mask's own logit decides nothing
        asked = real & ~own_nan
        assert torch.equal(token[asked], expected(logits, mask)[asked])
        assert (token != mask).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [500, 4096, 4097, 5000])
def test_the_two_largest_logits(size: int, kind: str) -> None:
    logits = logits_of(kind, size, size // 2)
    logits[0, 0, -1], logits[0, 1, -1], logits[0, 2, :2] = 90, 90, 90
    logits[0, 1, 5] = 90
    expected = logits.topk(2, -1).values
    candidates = Candidates(logits, torch.zeros(2, 5, dtype=torch.int64))
    torch.testing.assert_close(candidates._top2, expected, rtol=0, atol=0, equal_nan=True)


def test_entropy_of_sure_and_of_even_distributions() -> None:
    sharp = torch.zeros(4, 5000)
    sharp[1, 7], sharp[2, 7], sharp[3, 7] = 12, 18, 1e4
    sharp = torch.cat([sharp, torch.randn(4, 5000)])[None]
    sharp[0, 5, 100:] = -torch.inf  # as after a nucleus
    for shift in (0.0, 40.0, -300.0):
        found = Candidates(sharp + shift, torch.zeros(1, 8, dtype=torch.int64)).entropy
        exact = torch.special.entr((sharp + shift).double().softmax(-1)).sum(-1)
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=3e-7)
        assert (found >= 0).all()


@pytest.mark.parametrize("scale", [0.5, 3, 20, 80])
@pytest.mark.parametrize("size", [500, 4096, 20_011])
def test_confidence_is_that_of_float64_to_a_few_ulps(size: int, scale: float) -> None:
    """However sure the model is, and however the exponentials of a row are computed."""
    logits = scale * torch.randn(2, 5, size, generator=torch.Generator().manual_seed(size))
    logits[0, 1, 7], logits[0, 2] = logits[0, 1].max() + 17, 0  # nearly certain; even
    exact = logits.double().softmax(-1)
    found = Candidates(logits, logits.argmax(-1))
    expected = exact.amax(-1).float()
    torch.testing.assert_close(found.confidence, expected, rtol=4 * 2**-23, atol=0)
    torch.testing.assert_close(found.probabilities(), exact.float(), rtol=2e-5, atol=1e-9)


def test_best_is_the_first_of_the_ranks() -> None:
    torch.manual_seed(0)
    for _ in range(50):
        score, masked = torch.randn(4, 9).round(decimals=1), torch.rand(4, 9) < 0.4
        score[0, 2], score[1, 3], score[2, 4] = torch.nan, torch.inf, -torch.inf
        assert torch.equal(best(score, masked), (rank(score, masked) == 0) & masked)


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-9}, {"top_k": 1, "top_p": 0.5}])
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_filters_that_leave_the_mask_alone_leave_the_best_token_too(
    filters: dict[str, Any], temperature: float
) -> None:
    logits = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    logits[..., 8] = 20  # the mask is surest of itself
    sampling = Sampling(mask_token_id=8, temperature=temperature, **filters)
    columns, step = torch.arange(3).expand(2, 3), torch.zeros(2, dtype=torch.int64)
    found = sampling.propose(logits, CounterNoise(torch.tensor([0, 1])), columns, step)
    assert torch.equal(found.token, logits[..., :8].argmax(-1))
