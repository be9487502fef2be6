"""What the model proposes for a window: one token a column, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The proposed tokens of a window and the statistics of their distribution, made on demand.

    The only place that looks at logits. Statistics have the dtype of `logits`: float32, or
    float64 where parity asks for it.
    """

    logits: Tensor  # (B, W, V) float, those that statistics are read from
    token: Tensor  # (B, W) int64 proposed tokens; never the mask token
    raw: Tensor | None = None  # (B, W, V) float before temperature and filters; None: `logits`

    @cached_property
    def log_normaliser(self) -> Tensor:
        """The log of the summed exponentials, (B, W)."""
        return self.logits.logsumexp(-1)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the proposed token, (B, W)."""
        return self.log_prob(self.token).exp()

    @cached_property
    def entropy(self) -> Tensor:
        """The entropy of the distribution in nats, (B, W)."""
        return torch.special.entr(self.logits.softmax(-1)).sum(-1)

    @cached_property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities, (B, W)."""
        first, second = (self._top2 - self.log_normaliser[..., None]).exp().unbind(-1)
        return first - second

    @cached_property
    def gap(self) -> Tensor:
        """The difference of the two largest logits, (B, W); raw ones, whatever is sampled from."""
        top2 = self._top2 if self.raw is None else self.raw.topk(2, dim=-1).values
        return top2[..., 0] - top2[..., 1]

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Returns the log probability (B, W) in nats of tokens (B, W)."""
        return self.logits.gather(-1, tokens[..., None]).squeeze(-1) - self.log_normaliser

    def at(self, index: Tensor) -> Candidates:
        """Returns the candidates of the window's columns `index` (B, n) alone."""
        wide = index[..., None].expand(-1, -1, self.logits.shape[-1])
        raw = None if self.raw is None else self.raw.gather(1, wide)
        return Candidates(self.logits.gather(1, wide), self.token.gather(1, index), raw)

    def of_rows(self, rows: Tensor) -> Candidates:
        """Returns the candidates of some rows (n,) int64 alone."""
        raw = None if self.raw is None else self.raw[rows]
        return Candidates(self.logits[rows], self.token[rows], raw)

    @cached_property
    def _top2(self) -> Tensor:
        return self.logits.topk(2, dim=-1).values


def rank(score: Tensor, masked: Tensor) -> Tensor:
    """Returns each masked column's place (B, W) int64 by descending score, 0 the best.

    Ties go to the lower column, on every device; columns that are not masked come last.
    """
    lowest = torch.finfo(score.dtype).min
    order = score.clamp(min=lowest).masked_fill(~masked, -torch.inf)
    order = order.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
