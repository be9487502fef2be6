"""From logits to candidates: temperature, nucleus, forbidden tokens, Gumbel noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.kernels.chunks import largest_but, pays
from dllm.kernels.statistics import has_kernel, statistics
from dllm.state.candidates import Candidates
from dllm.state.noise import Noise

ConfidenceSource = Literal["raw", "tempered"]


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

        `columns` (B, W) and each row's `step` (B,) choose the noise. `places` (B, w) int64 are the
        columns that the logits are of, by place in the window; None: all.
        """
        if self._is_plain and has_kernel(logits.device):
            measured = statistics(logits, self.mask_token_id)
            token = _at(measured.token, columns, places)
            return Candidates(logits, token, places=places, measured=measured)
        wide = _without(logits.to(self.dtype), self.forbidden_token_ids)
        shaped = self._shape(wide)
        if self.temperature > 0:
            at = columns if places is None else columns.gather(1, places)
            uniform = noise.tokens(at, step, shaped.shape[-1])
            # float64: in a lower precision the tail of the Gumbel distribution is cut off, which
            # lowers the effective temperature (arXiv 2409.02908).
            drawn = shaped.double() - torch.log(-torch.log(uniform))
            token = _best(drawn, self.mask_token_id)
        else:
            token = _best(shaped, self.mask_token_id)
        scored = shaped if self.confidence == "tempered" else wide
        scored = _without(scored, self.deferred_token_ids)
        token = _at(token, columns, places)
        return Candidates(scored, token, None if scored is wide else wide, places)

    @property
    def _is_plain(self) -> bool:
        """Whether statistics are those of the model's own logits, in float32, and suffice."""
        shaped = self.temperature > 0 or self.top_p is not None or self.top_k is not None
        marked = self.forbidden_token_ids or self.deferred_token_ids
        return self.lean and self.dtype == torch.float32 and not (shaped or marked)

    def _shape(self, logits: Tensor) -> Tensor:
        """Returns logits after temperature, top-p and top-k, in this order (Dream)."""
        if self.temperature > 0:
            logits = logits / self.temperature
        if self.top_p is not None and self.top_p < 1:
            logits = _nucleus(logits, self.top_p)
        if self.top_k is not None:
            kept = min(self.top_k, logits.shape[-1])
            smallest = logits.topk(kept, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        return logits


def _at(token: Tensor, columns: Tensor, places: Tensor | None) -> Tensor:
    """Returns tokens (B, w) at their places in the window, (B, W)."""
    if places is None:
        return token
    return torch.zeros_like(columns).scatter(1, places, token)


def _best(logits: Tensor, but: int) -> Tensor:
    """Returns the most probable token but one, (...) int64; of equal ones the lowest.

    In two parts, as a copy of the logits would cost more than all other statistics.
    """
    if pays(logits):
        return largest_but(logits, but)
    if but == logits.shape[-1] - 1:
        return logits[..., :but].max(-1).indices
    if but == 0:
        return logits[..., 1:].max(-1).indices + 1
    low, high = logits[..., :but].max(-1), logits[..., but + 1 :].max(-1)
    # A number that is none is kept, as it is in a maximum over all.
    later = (high.values > low.values) | (high.values.isnan() & ~low.values.isnan())
    return torch.where(later, high.indices + but + 1, low.indices)


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Drops the tokens after the one with which the cumulated probability passes `top_p`."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    ordered = ordered.masked_fill(before > top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def _without(logits: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    if not token_ids:
        return logits
    logits = logits.clone()
    for token in token_ids:  # a few, known to the host: an index tensor would be a transfer
        logits[..., token] = -torch.inf
    return logits
