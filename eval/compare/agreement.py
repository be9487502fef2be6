"""How far one set of logits is from another: errors, and what they change of the decision."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.state.candidates import Candidates


def logit_error(logits: Tensor, exact: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the largest and the mean absolute difference over each row's chosen columns, (B,).

    Logits are (B, W, V), `chosen` (B, W) bool. Two equal infinities do not differ; a row without
    chosen columns has no error.
    """
    difference = torch.where(logits == exact, 0, (logits - exact).abs())
    difference = torch.where(chosen[..., None], difference, 0).double()
    largest = difference.amax((1, 2))
    return largest, difference.mean(2).sum(1) / chosen.sum(1).clamp(min=1)


def divergence(logits: Tensor, exact: Tensor, chosen: Tensor) -> Tensor:
    """Returns the mean KL(exact || given) of the chosen columns in nats, (B,) float64."""
    given, true = logits.double().log_softmax(-1), exact.double().log_softmax(-1)
    terms = torch.where(true.isneginf(), 0, true.exp() * (true - given))
    each = torch.where(chosen, terms.sum(-1), 0)
    return each.sum(1).clamp(min=0) / chosen.sum(1).clamp(min=1)


def same_first(given: Candidates, exact: Candidates, chosen: Tensor) -> Tensor:
    """Returns whether the same chosen column is the most confident one, (B,) float64.

    Ties go to the lower column, as in schedulers; NaN where a row has no chosen column.
    """
    first = [c.confidence.masked_fill(~chosen, -torch.inf).argmax(1) for c in (given, exact)]
    return (first[0] == first[1]).double().masked_fill(~chosen.any(1), torch.nan)


def rank_correlation(given: Tensor, exact: Tensor, chosen: Tensor) -> Tensor:
    """Returns Spearman's rho of two scores (B, W) over each row's chosen columns, (B,) float64.

    Equal scores share their mean rank. NaN where there is no order to compare: fewer than two
    columns, or all scores of one side equal.
    """
    count = chosen.sum(1, keepdim=True)
    centred = []
    for score in (given, exact):
        rank = _mean_rank(score, chosen)
        mean = torch.where(chosen, rank, 0).sum(1, keepdim=True) / count.clamp(min=1)
        centred.append(torch.where(chosen, rank - mean, 0))
    one, other = centred
    spread = (one.square().sum(1) * other.square().sum(1)).sqrt()
    return torch.where(spread > 0, (one * other).sum(1) / spread, torch.nan)


def _mean_rank(score: Tensor, chosen: Tensor) -> Tensor:
    """Returns ranks (B, W) float64 among the chosen columns, the mean one for equal scores."""
    score = score.double().masked_fill(~chosen, torch.inf)  # the others come last
    ordered = score.sort(1).values
    below = torch.searchsorted(ordered, score)
    above = torch.searchsorted(ordered, score, right=True)
    return (below + above - 1).double() / 2
