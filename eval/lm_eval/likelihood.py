"""How likely a masked diffusion model finds a text, and whether it would write it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dllm.decoding.loop import BrokenLogitsError
from dllm.eval.lm_eval.masked_pass import MaskedRow, predict
from dllm.eval.lm_eval.target_masks import draw
from dllm.models.model import DenoisingModel
from dllm.state.candidates import Candidates, Sampling, rank
from dllm.state.noise import CounterNoise

_AHEAD = 8  # batches of continuations that are scored together and yielded


@dataclass(frozen=True)
class Continuation:
    """A text in token ids, of which the part from `start` on is scored."""

    tokens: tuple[int, ...]
    start: int
    seed: int = 0  # of the masks that are drawn


@dataclass(frozen=True)
class Score:
    """What a model says of a continuation."""

    log_likelihood: float  # the any-order bound, in nats
    is_greedy: bool  # decoding the surest token at each step gives it; False if not asked
    num_draws: int  # masks that were tried
    exact: bool  # they were all there are, so that the bound has no sampling error


@dataclass(frozen=True)
class _Job:
    index: int  # of the continuation
    row: MaskedRow
    weight: float


@dataclass(frozen=True)
class Scorer:
    """Scores continuations, many rows a pass; scores do not depend on what shares a pass."""

    model: DenoisingModel
    num_draws: int = 128
    batch_size: int = 1
    guidance_scale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_draws", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def scores(
        self, given: Sequence[Continuation], greedy: bool = True
    ) -> Iterator[tuple[int, Score]]:
        """Yields (index, score) of each continuation, the longest ones first."""
        order = sorted(range(len(given)), key=lambda i: -len(given[i].tokens))
        together = _AHEAD * self.batch_size
        for begin in range(0, len(order), together):
            chunk = order[begin : begin + together]
            parts = [self._segments(given[i]) for i in chunk]
            right = self._greedy(parts) if greedy else [False] * len(parts)
            yield from zip(chunk, self._estimates(parts, right), strict=True)

    def _segments(self, given: Continuation) -> list[Continuation]:
        """Returns what is scored by itself: all at once, or each block of a block-causal model.

        Such a model was trained to fill a block after clean ones, and by the chain rule the blocks
        add up.
        """
        spec, end = self.model.spec, len(given.tokens)
        if spec.logit_shift and not given.start:
            raise ValueError(
                "this model predicts each token from the one before, so the first token of a text "
                "has no score: start with one that is given"
            )
        if given.start == end or spec.attention == "full":
            return [given] if given.start < end else []
        block = spec.block_length or 1  # 1: causal attention
        first = (given.start // block + 1) * block
        borders = [given.start, *range(first, end, block), end]
        return [
            Continuation(given.tokens[:stop], start, given.seed + start)
            for start, stop in pairwise(borders)
        ]

    def _estimates(
        self, parts: Sequence[Sequence[Continuation]], right: Sequence[bool]
    ) -> list[Score]:
        jobs, exact = [], [True] * len(parts)
        for index, segments in enumerate(parts):
            for part in segments:
                draws = draw(len(part.tokens) - part.start, self.num_draws, part.seed)
                exact[index] &= draws.exact
                for masked, weight in zip(draws.masked, draws.weight.tolist(), strict=True):
                    jobs.append(_Job(index, MaskedRow(part.tokens, part.start, masked), weight))
        total, count = [0.0] * len(parts), [0] * len(parts)
        for begin in range(0, len(jobs), self.batch_size):
            batch = jobs[begin : begin + self.batch_size]
            for job, loss in zip(batch, self._losses([job.row for job in batch]), strict=True):
                total[job.index] -= job.weight * loss
                count[job.index] += 1
        return [Score(*found) for found in zip(total, right, count, exact, strict=True)]

    def _losses(self, rows: Sequence[MaskedRow]) -> list[float]:
        """Returns the summed loss of each row's masked tokens, in nats."""
        seen = predict(self.model, rows, self.guidance_scale)
        loss = -Candidates(seen.logits, seen.target).log_prob(seen.target).double()
        losses = torch.where(seen.masked, loss, 0).sum(1)
        if losses.isnan().any():
            raise BrokenLogitsError(
                "the model's logits hold NaN; the weights or the dtype are the usual cause "
                "(try dtype=float32)"
            )
        return [float(value) for value in losses.tolist()]

    def _greedy(self, parts: Sequence[Sequence[Continuation]]) -> list[bool]:
        """Returns which continuations one gets that commits the surest token at each step."""
        right = [True] * len(parts)
        segments = [(i, part) for i, listed in enumerate(parts) for part in listed]
        for begin in range(0, len(segments), self.batch_size):
            batch = segments[begin : begin + self.batch_size]
            held = self._decoded([part for _, part in batch])
            for (index, _), holds in zip(batch, held, strict=True):
                right[index] &= holds
        return right

    def _decoded(self, parts: Sequence[Continuation]) -> list[bool]:
        """Returns which texts are decoded as they stand; each is left at its first wrong token."""
        masks = [torch.ones(len(part.tokens) - part.start, dtype=torch.bool) for part in parts]
        right, running = [True] * len(parts), list(range(len(parts)))
        while running:
            rows = [MaskedRow(parts[i].tokens, parts[i].start, masks[i]) for i in running]
            column, holds = self._surest(rows)
            for i, place, held in zip(running, column.tolist(), holds.tolist(), strict=True):
                right[i] = held
                masks[i][place] = False
            running = [i for i in running if right[i] and bool(masks[i].any())]
        return right

    def _surest(self, rows: Sequence[MaskedRow]) -> tuple[Tensor, Tensor]:
        """Returns each row's surest column (B,) and whether it would get the right token (B,)."""
        seen = predict(self.model, rows, self.guidance_scale)
        still = torch.zeros(len(rows), dtype=torch.int64, device=seen.masked.device)
        sampling = Sampling(self.model.spec.mask_token_id, dtype=seen.logits.dtype)
        found = sampling.propose(seen.logits, CounterNoise(still), seen.target, still)
        first = rank(found.confidence, seen.masked).argmin(1, keepdim=True)
        holds = (found.token == seen.target).gather(1, first)
        return first[:, 0], holds[:, 0]
