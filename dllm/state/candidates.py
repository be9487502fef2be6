"""What the model proposes for a window: one token a column, drawn how, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dllm.kernels import statistics as kernel
from dllm.kernels.draw import Draw
from dllm.state.noise import CounterNoise, Noise
from dllm.state.softmax import (
    IMPOSSIBLE,
    chunks_of,
    entropy_of,
    exponential,
    largest_but,
    largest_two,
    nucleus,
    softmax,
    summed,
    total_and_entropy,
    total_weight,
    without,
)

ConfidenceSource = Literal["raw", "tempered"]


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
    measured: kernel.Statistics | None = None  # of `logits`, narrower then; None: not yet
    heat: float = 1.0  # what measured statistics had logits divided by
    chunks: Tensor | None = None  # (B, w, n) the largest of each chunk of `logits`, if it is known

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the proposed token, (B, W)."""
        logit = self._logit_of(self.token) if self.measured is None else self.measured.logit
        return self.spread(self._probability(logit), 0)

    @cached_property
    def entropy(self) -> Tensor:
        """The entropy of the distribution in nats, (B, W)."""
        if self.measured is not None:
            nats = self.measured.entropy
        elif "_total" in vars(self):
            nats = entropy_of(self.logits, self._largest, self._total).to(self.logits.dtype)
        else:
            nats = self._weighed[1].to(self.logits.dtype)
        return self.spread(nats, math.log(self.logits.shape[-1]))

    @cached_property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities, (B, W)."""
        first, second = self._top2.unbind(-1)
        difference = -torch.expm1(second - first) / self._total
        return self.spread(difference.to(first.dtype), 0)

    @cached_property
    def gap(self) -> Tensor:
        """The difference of the two largest logits, (B, W); raw ones, whatever is sampled from."""
        top2 = self._top2 if self.raw is None else largest_two(self.raw)
        if self.measured is not None:
            top2 = top2.float()  # of logits that are as narrow as the pass gave them
        return self.spread(top2[..., 0] - top2[..., 1], 0)

    def certainty(self, measure: str) -> Tensor:
        """Returns the `confidence` or `margin` of columns, or their negative `entropy`, (B, W)."""
        return -self.entropy if measure == "entropy" else getattr(self, measure)

    def log_prob(self, tokens: Tensor) -> Tensor:
        """Returns the log probability (B, W) in nats of tokens (B, W)."""
        below = self._logit_of(tokens) - self._largest
        return self.spread((below - self._total.log()).to(below.dtype), IMPOSSIBLE)

    def probabilities(self) -> Tensor:
        """Returns the whole distribution, (B, w, V); `log_prob` and others need less memory."""
        return softmax(self.logits)

    def distribution(self) -> tuple[Tensor, Tensor]:
        """Returns the distribution's logarithms in nats and its probabilities, (B, w, V) anew."""
        below = self.logits - self._largest[..., None]
        weight = exponential(below)
        if "_total" not in vars(self):
            vars(self)["_total"] = summed(weight)
        total = self._total[..., None]
        return below.sub_(total.log().to(below.dtype)), weight.div_(total.to(weight.dtype))

    def at(self, index: Tensor) -> Candidates:
        """Returns the candidates of the window's columns `index` (B, n) alone."""
        row = index
        if self.places is not None:  # of the logits; of a column that has none, any
            every = torch.arange(self.places.shape[1], device=index.device)
            empty = torch.zeros_like(self.token)
            row = empty.scatter(1, self.places, every.expand_as(self.places)).gather(1, index)
        raw = None if self.raw is None else kernel.rows_at(self.raw, row)
        measured = None if self.measured is None else self.measured.at(row)
        logits, token = kernel.rows_at(self.logits, row), self.token.gather(1, index)
        return Candidates(logits, token, raw, measured=measured, heat=self.heat)

    def of_rows(self, rows: Tensor) -> Candidates:
        """Returns the candidates of some rows (n,) int64 alone."""
        raw = None if self.raw is None else self.raw[rows]
        places = None if self.places is None else self.places[rows]
        measured = None if self.measured is None else self.measured.of_rows(rows)
        return Candidates(self.logits[rows], self.token[rows], raw, places, measured, self.heat)

    @cached_property
    def _largest(self) -> Tensor:
        if self.measured is not None:
            return self.measured.first
        return (self.logits if self.chunks is None else self.chunks).amax(-1)

    @cached_property
    def _total(self) -> Tensor:
        """The sum of exp(logit - largest), (B, w) float64."""
        if self.measured is not None:
            return self.measured.total.double()
        if "_weighed" in vars(self):
            return self._weighed[0]
        return total_weight(self.logits, self._largest)

    @cached_property
    def _weighed(self) -> tuple[Tensor, Tensor]:
        """The total and the entropy, (B, w) float64, for which logits are read once."""
        return total_and_entropy(self.logits, self._largest)

    @cached_property
    def _top2(self) -> Tensor:
        if self.measured is not None:
            return torch.stack([self.measured.first, self.measured.second], -1)
        return largest_two(self.logits, self.chunks)

    def _probability(self, logit: Tensor) -> Tensor:
        """Returns the probability (B, w) of tokens with these logits (B, w)."""
        return ((logit - self._largest).exp() / self._total).to(logit.dtype)

    def _logit_of(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, w) of tokens (B, W)."""
        if self.places is not None:
            tokens = tokens.gather(1, self.places)
        own = self.logits.gather(-1, tokens[..., None]).squeeze(-1)
        return own if self.heat == 1 else own.float() / self.heat

    def spread(self, statistic: Tensor, otherwise: float) -> Tensor:
        """Returns a statistic (B, w) over the whole window, (B, W)."""
        if self.places is None:
            return statistic
        return statistic.new_full(self.token.shape, otherwise).scatter_(1, self.places, statistic)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, and from which distribution confidence is read.

    `raw` confidence is the plain softmax (LLaDA, Fast-dLLM); `tempered` is read after
    temperature, top-p and top-k (Dream), where a low temperature pushes it towards 1.
    """

    mask_token_id: int
    temperature: float = 0.0  # 0: the most probable token
    top_p: float | None = None
    top_k: int | None = None
    confidence: ConfidenceSource = "raw"
    forbidden_token_ids: tuple[int, ...] = ()  # never proposed (LLaDA's logits_eos_inf)
    deferred_token_ids: tuple[int, ...] = ()  # confidence 0 (LLaDA's confidence_eos_eot_inf)
    dtype: torch.dtype = torch.float32  # of all statistics
    lean: bool = False  # nobody reads `Candidates.logits`, only what is made of them

    def propose(
        self,
        logits: Tensor,
        noise: Noise,
        columns: Tensor,
        step: Tensor,
        places: Tensor | None = None,
    ) -> Candidates:
        """Returns the candidates of a window from its logits (B, w, V).

        `columns` (B, W) and each row's `step` (B,) choose the noise; without `places` the step may
        be one of each column, (B, W). `places` (B, w) int64 are the columns that the logits are of,
        by place in the window; None: all.
        """
        at = columns
        if self.temperature > 0 and places is not None:
            at = columns.gather(1, places)
        if self._is_measurable(noise) and kernel.has_kernel(logits.device):
            return self._measured(logits, self._draw(noise, at, step), columns, places)
        wide = without(logits.to(self.dtype), self.forbidden_token_ids)
        shaped, chunks = self._shape(wide), None
        if self.temperature > 0:
            uniform = noise.tokens(at, step, shaped.shape[-1])
            # float64: in a lower precision the tail of the Gumbel distribution is cut off, which
            # lowers the effective temperature (arXiv 2409.02908).
            drawn = shaped.double() - torch.log(-torch.log(uniform))
            token = largest_but(drawn, self.mask_token_id)
        else:
            chunks = chunks_of(shaped)
            token = largest_but(shaped, self.mask_token_id, chunks)
        read = shaped if self.confidence == "tempered" else wide
        scored = without(read, self.deferred_token_ids)
        if self.deferred_token_ids and read is shaped:  # filters may have left no other tokens
            empty = scored.amax(-1, keepdim=True) == -torch.inf
            scored = torch.where(empty, without(wide, self.deferred_token_ids), scored)
        token, raw = _at(token, columns, places), None if scored is wide else wide
        return Candidates(scored, token, raw, places, chunks=chunks if scored is shaped else None)

    def _is_measurable(self, noise: Noise) -> bool:
        """Whether one kernel has all: nothing is filtered, numbers are float32 and suffice."""
        filtered = self.top_p is not None or self.top_k is not None
        filtered = filtered or bool(self.forbidden_token_ids or self.deferred_token_ids)
        known = self.temperature == 0 or isinstance(noise, CounterNoise)
        return self.lean and self.dtype == torch.float32 and known and not filtered

    def _draw(self, noise: Noise, columns: Tensor, step: Tensor) -> Draw | None:
        """Returns how the kernel draws tokens of columns (B, w); None: the most probable ones."""
        if self.temperature == 0:
            return None
        assert isinstance(noise, CounterNoise)
        tempered = self.confidence == "tempered"
        return Draw(noise.seeds, step, columns, self.temperature, tempered)

    def _measured(
        self, logits: Tensor, draw: Draw | None, columns: Tensor, places: Tensor | None
    ) -> Candidates:
        """Returns candidates of logits (B, w, V) by one kernel."""
        if draw is None:
            measured = kernel.in_one_pass(logits, self.mask_token_id)
        else:
            measured = kernel.in_one_pass(logits, self.mask_token_id, draw)
        token = _at(measured.token, columns, places)
        heated = draw is not None and draw.tempered
        raw, heat = (logits, self.temperature) if heated else (None, 1.0)
        return Candidates(logits, token, raw, places, measured, heat)

    def _shape(self, logits: Tensor) -> Tensor:
        """Returns logits after temperature, top-p and top-k, in this order (Dream)."""
        shaped = heated = logits / self.temperature if self.temperature > 0 else logits
        if self.top_p is not None and self.top_p < 1:
            shaped = nucleus(shaped, self.top_p)
        if self.top_k is not None:
            smallest = shaped.topk(min(self.top_k, shaped.shape[-1]), dim=-1).values[..., -1:]
            shaped = shaped.masked_fill(shaped < smallest, -torch.inf)
        if shaped is heated:
            return heated
        # Filters may have left the mask alone: the best other token is what can be proposed then.
        best = largest_but(heated, self.mask_token_id)[..., None]
        return shaped.scatter(-1, best, heated.gather(-1, best))


def _at(token: Tensor, columns: Tensor, places: Tensor | None) -> Tensor:
    """Returns tokens (B, w) at their places in the window, (B, W)."""
    return token if places is None else torch.zeros_like(columns).scatter_(1, places, token)


def best(score: Tensor, masked: Tensor) -> Tensor:
    """Returns the column of each row that `rank` places first, (B, W) bool; none without masks."""
    first = _among(score, masked).argmax(-1, keepdim=True)
    return masked & (kernel.numbers(score.shape[-1], score.device) == first)


def rank(score: Tensor, masked: Tensor) -> Tensor:
    """Returns each masked column's place (B, W) int64 by descending score, 0 the best.

    Ties go to the lower column, on every device; columns that are not masked come last.
    """
    order = ranking(score, masked)[1]
    places = kernel.numbers(score.shape[-1], score.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def ranking(score: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scores and the columns in the order of `rank`, (B, W) each, columns int64.

    The scores of columns that are not masked are -inf.
    """
    ranked, order = _among(score, masked).sort(dim=-1, descending=True, stable=True)
    return ranked, order


def _among(score: Tensor, masked: Tensor) -> Tensor:
    """Returns the scores (B, W) of masked columns, and less for all others."""
    return score.clamp(min=torch.finfo(score.dtype).min).where(masked, -torch.inf)
