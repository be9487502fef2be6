"""What the model proposes for a window: one token a column, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dllm.kernels.chunks import largest_two, pays
from dllm.kernels.statistics import Statistics

_IMPOSSIBLE = -1e4  # nats; finite, so that it times 0 is 0


@dataclass(frozen=True)
class Candidates:
    """The proposed tokens of a window and the statistics of their distribution, made on demand.

    The only place that looks at logits. Statistics have the dtype of `logits`: float32, or
    float64 where parity asks for it. Columns without logits have those of a token that nobody
    would commit; no one may read them.
    """

    logits: Tensor  # (B, w, V) float, those that statistics are read from
    token: Tensor  # (B, W) int64 proposed tokens; never the mask token
    raw: Tensor | None = None  # (B, w, V) float before temperature and filters; None: `logits`
    places: Tensor | None = None  # (B, w) int64 columns that have logits; None: all W
    measured: Statistics | None = None  # of `logits`, which may then be narrower; None: not yet

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the proposed token, (B, W)."""
        logit = self._logit_of(self.token) if self.measured is None else self.measured.logit
        return self._spread((logit - self._log_normaliser).exp(), 0)

    @cached_property
    def entropy(self) -> Tensor:
        """The entropy of the distribution in nats, (B, W)."""
        if self.measured is None:
            entropy = _entropy(self.logits)
        else:
            entropy = self.measured.entropy
        return self._spread(entropy, math.log(self.logits.shape[-1]))

    @cached_property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities, (B, W)."""
        first, second = (self._top2 - self._log_normaliser[..., None]).exp().unbind(-1)
        return self._spread(first - second, 0)

    @cached_property
    def gap(self) -> Tensor:
        """The difference of the two largest logits, (B, W); raw ones, whatever is sampled from."""
        top2 = self._top2 if self.raw is None else _two_largest(self.raw)
        return self._spread(top2[..., 0] - top2[..., 1], 0)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Returns the log probability (B, W) in nats of tokens (B, W)."""
        return self._spread(self._logit_of(tokens) - self._log_normaliser, _IMPOSSIBLE)

    def at(self, index: Tensor) -> Candidates:
        """Returns the candidates of the window's columns `index` (B, n) alone."""
        row = index
        if self.places is not None:  # of the logits; of a column that has none, any
            every = torch.arange(self.places.shape[1], device=index.device)
            empty = torch.zeros_like(self.token)
            row = empty.scatter(1, self.places, every.expand_as(self.places)).gather(1, index)
        wide = row[..., None].expand(-1, -1, self.logits.shape[-1])
        raw = None if self.raw is None else self.raw.gather(1, wide)
        measured = None if self.measured is None else self.measured.at(row)
        token = self.token.gather(1, index)
        return Candidates(self.logits.gather(1, wide), token, raw, measured=measured)

    def of_rows(self, rows: Tensor) -> Candidates:
        """Returns the candidates of some rows (n,) int64 alone."""
        raw = None if self.raw is None else self.raw[rows]
        places = None if self.places is None else self.places[rows]
        measured = None if self.measured is None else self.measured.of_rows(rows)
        return Candidates(self.logits[rows], self.token[rows], raw, places, measured)

    @cached_property
    def log_normaliser(self) -> Tensor:
        """The log of the summed exponentials, (B, W)."""
        return self._spread(self._log_normaliser, 0)

    @cached_property
    def _log_normaliser(self) -> Tensor:
        return self.logits.logsumexp(-1) if self.measured is None else self.measured.normaliser

    @cached_property
    def _top2(self) -> Tensor:
        if self.measured is not None:
            return torch.stack([self.measured.first, self.measured.second], -1)
        return _two_largest(self.logits)

    def _logit_of(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, w) of tokens (B, W)."""
        if self.places is not None:
            tokens = tokens.gather(1, self.places)
        return self.logits.gather(-1, tokens[..., None]).squeeze(-1)

    def _spread(self, statistic: Tensor, otherwise: float) -> Tensor:
        """Returns a statistic (B, w) over the whole window, (B, W)."""
        if self.places is None:
            return statistic
        return statistic.new_full(self.token.shape, otherwise).scatter(1, self.places, statistic)


def _two_largest(logits: Tensor) -> Tensor:
    return largest_two(logits) if pays(logits) else logits.topk(2, dim=-1).values


def _entropy(logits: Tensor) -> Tensor:
    """Returns the entropy of logits (B, w, V) in nats, (B, w).

    From differences to the largest logit, so that a sure distribution, whose most probable token
    is at 0, keeps its small entropy; and without a logarithm for each token.
    """
    below = logits - logits.amax(-1, keepdim=True)
    weight = below.exp()
    total = weight.sum(-1)
    mean = (weight * below.clamp_(min=_IMPOSSIBLE)).sum(-1) / total
    return total.log() - mean


def best(score: Tensor, masked: Tensor) -> Tensor:
    """Returns the column of each row that `rank` places first, (B, W) bool; none without masks."""
    first = _among(score, masked).argmax(-1, keepdim=True)
    return torch.zeros_like(masked).scatter_(-1, first, True) & masked


def rank(score: Tensor, masked: Tensor) -> Tensor:
    """Returns each masked column's place (B, W) int64 by descending score, 0 the best.

    Ties go to the lower column, on every device; columns that are not masked come last.
    """
    order = _among(score, masked).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _among(score: Tensor, masked: Tensor) -> Tensor:
    """Returns the scores (B, W) of masked columns, and less for all others."""
    lowest = torch.finfo(score.dtype).min
    return score.clamp(min=lowest).where(masked, -torch.inf)
