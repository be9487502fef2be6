"""The likelihood of a text under a masked diffusion model, and whether it would write it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dllm.cache.block_causal import unit
from dllm.cache.passes import block_causal, causal_context, clean_and_noisy
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError, ran_out
from dllm.models.config import ModelSpec
from dllm.models.model import DenoisingModel
from dllm.models.wrap import GuidedModel
from dllm.options import Count, Options
from dllm.settings import Guidance
from dllm.state.candidates import Candidates, Sampling, rank
from dllm.state.noise import CounterNoise
from dllm.state.plan import StepPlan

_AHEAD = 8  # batches of continuations that are scored together and yielded


@dataclass(frozen=True)
class Continuation:
    """A text in token ids, of which the part from `start` on is scored."""

    tokens: tuple[int, ...]
    start: int
    seed: int = 0  # of the masks that are drawn
    # Of a part of what is scored: tokens that were given at first; None: those up to `start`.
    context: int | None = None


@dataclass(frozen=True)
class Score:
    """The verdict of a model on a continuation."""

    log_likelihood: float  # the any-order bound, in nats
    is_greedy: bool  # decoding the surest token at each step gives it; False if not asked
    num_draws: int  # masks that were tried
    exact: bool  # they were all there are, so that the bound has no sampling error


@dataclass(frozen=True)
class Prediction:
    """The logits of a pass for the columns from each row's start on."""

    logits: Tensor  # (B, W, V) float32, or float64 of a model in float64
    target: Tensor  # (B, W) int64 tokens that stand there
    masked: Tensor  # (B, W) bool; False where a row is shorter


@dataclass(frozen=True)
class Draws:
    """Ways to mask a target of n tokens, and the weight of each one's summed loss."""

    masked: Tensor  # (D, n) bool
    weight: Tensor  # (D,) float64
    exact: bool  # these are all the ways there are


@dataclass(frozen=True)
class Scorer(Options):
    """Scores continuations, many rows a pass; scores do not depend on what shares a pass."""

    model: DenoisingModel
    num_draws: Count = 128
    batch_size: Count = 1
    guidance_scale: Guidance = 0.0

    def __post_init__(self) -> None:
        attention, guided = self.model.spec.attention, self.guidance_scale > 0
        if guided and attention in ("masks_last", "encoder_decoder"):
            why = "would see behind all tokens" if attention == "masks_last" else "never encodes"
            raise ValueError(
                f"guidance_scale={self.guidance_scale} runs the prompt as masks, which "
                f"{self.model.name!r} {why}: leave it out"
            )

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
        if spec.attention == "causal_context" or spec.blocks_from == "prompt":
            assert spec.block_length is not None
            block, first = spec.block_length, given.start + spec.block_length
        else:
            block = _block_of(spec)
            first = (given.start // block + 1) * block
        borders = [given.start, *range(first, end, block), end]
        context = given.start if given.context is None else given.context
        return [
            Continuation(given.tokens[:stop], start, given.seed + start, context)
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
                    jobs.append((index, part, masked, weight))
        total, count = [0.0] * len(parts), [0] * len(parts)
        for begin in range(0, len(jobs), self.batch_size):
            batch = jobs[begin : begin + self.batch_size]
            losses = self._losses([text for _, text, *_ in batch], [row[2] for row in batch])
            for (index, _, _, weight), loss in zip(batch, losses, strict=True):
                total[index] -= weight * loss
                count[index] += 1
        return [Score(*found) for found in zip(total, right, count, exact, strict=True)]

    def _losses(self, texts: Sequence[Continuation], masks: Sequence[Tensor]) -> list[float]:
        """Returns the summed loss of each text's masked tokens, in nats."""
        seen = predict(self.model, texts, masks, self.guidance_scale)
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
            decoded = self._decoded([part for _, part in batch])
            for (index, _), holds in zip(batch, decoded, strict=True):
                right[index] &= holds
        return right

    def _decoded(self, parts: Sequence[Continuation]) -> list[bool]:
        """Returns which texts are decoded as they stand; each is left at its first wrong token."""
        masks = [torch.ones(len(part.tokens) - part.start, dtype=torch.bool) for part in parts]
        right, running = [True] * len(parts), list(range(len(parts)))
        while running:
            column, holds = self._surest([parts[i] for i in running], [masks[i] for i in running])
            for i, filled, is_right in zip(running, column.tolist(), holds.tolist(), strict=True):
                right[i] = is_right
                masks[i][filled] = False
            running = [i for i in running if right[i] and bool(masks[i].any())]
        return right

    def _surest(
        self, texts: Sequence[Continuation], masks: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns each row's surest column (B,) and whether it would get the right token (B,)."""
        seen = predict(self.model, texts, masks, self.guidance_scale)
        still = torch.zeros(len(texts), dtype=torch.int64, device=seen.masked.device)
        sampling = Sampling(self.model.spec.mask_token_id, dtype=seen.logits.dtype)
        found = sampling.propose(seen.logits, CounterNoise(still), seen.target, still)
        first = rank(found.confidence, seen.masked).argmin(1, keepdim=True)
        holds = (found.token == seen.target).gather(1, first)
        return first[:, 0], holds[:, 0]


def draw(length: int, count: int, seed: int) -> Draws:
    """Returns `count` ways to mask a target, or all there are if they are not more.

    log p >= -E[n/k * loss of k masked tokens], with k uniform in 1..n and the k tokens uniform as
    well (arXiv 2502.09992, equation 6). All 2**n - 1 ways with their probabilities give the
    expectation itself. Sampled counts are spread over 1..n from a random first one
    (ML-GSAI/LLaDA eval_llada.py), but in whole steps: rounding half a step to the even number, as
    there, would favour even counts.
    """
    if length <= count.bit_length() and 2**length - 1 <= count:
        ways = (torch.arange(1, 2**length)[:, None] >> torch.arange(length)) & 1
        sizes = ways.sum(1)
        alike = torch.tensor([math.comb(length, int(size)) for size in sizes], dtype=torch.float64)
        return Draws(ways.bool(), 1 / (sizes * alike), exact=True)
    source = torch.Generator().manual_seed(seed)
    first = torch.randint(length, (), generator=source)
    sizes = (first + torch.arange(count) * length // count) % length + 1
    ranks = torch.rand(count, length, generator=source).argsort(1)
    return Draws(ranks < sizes[:, None], length / (sizes.double() * count), exact=False)


def predict(
    model: DenoisingModel,
    texts: Sequence[Continuation],
    masks: Sequence[Tensor],
    guidance_scale: float = 0.0,
) -> Prediction:
    """Returns one pass's logits; raises NotEnoughMemoryError when the rows do not fit.

    Masks (n,) hide tokens from `start` on. With guidance the unconditional half does not see the
    columns before it.
    """
    device, spec = model.device, model.spec

    def padded(rows: list[Tensor], value: float) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value).to(device)

    tokens = padded([torch.tensor(text.tokens) for text in texts], spec.pad_token_id)
    before = [torch.zeros(text.start, dtype=torch.bool) for text in texts]
    hidden = padded([torch.cat(pair) for pair in zip(before, masks, strict=True)], False)
    masked = padded(list(masks), False)
    start = torch.tensor([text.start for text in texts], device=device)[:, None]
    length = torch.tensor([len(text.tokens) for text in texts], device=device)
    columns = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    wanted = (start + torch.arange(masked.shape[1], device=device)).clamp(max=tokens.shape[1] - 1)
    if guidance_scale > 0:
        model = GuidedModel(model, guidance_scale, given=columns < start)
    plan = StepPlan(
        kind="step",
        positions=columns,
        logit_rows=(wanted - spec.logit_shift).clamp(min=0),
        num_keys=tokens.shape[1],
        attention_mask=_visible(columns, start[:, 0], length, spec),
    )
    fed = tokens.masked_fill(hidden, spec.mask_token_id)
    if spec.attention == "encoder_decoder":
        given = [text.start if text.context is None else text.context for text in texts]
        context = torch.tensor(given, device=device)
        plan = clean_and_noisy(plan, context, length, _block_of(spec))
        fed = torch.cat([tokens, fed], 1)
    try:
        with torch.inference_mode():
            logits = model.forward(fed, plan, None)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return Prediction(wide, tokens.gather(1, wanted), masked)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise NotEnoughMemoryError(
            f"memory ran out for {len(texts)} row(s) of {tokens.shape[1]} tokens: lower batch_size"
        ) from error


def _block_of(spec: ModelSpec) -> int:
    """Returns the columns, counted from 0, that were masked together in training."""
    if spec.attention == "encoder_decoder":
        assert spec.block_length is not None
        return spec.block_length
    return unit(spec)


def _visible(columns: Tensor, start: Tensor, length: Tensor, spec: ModelSpec) -> Tensor | None:
    """Returns which keys each column sees, (B, 1 or Q, K) bool; None if all."""
    width = columns.shape[1]
    if spec.attention == "encoder_decoder":
        return None  # `clean_and_noisy` says it
    if spec.attention == "full" and bool((length == width).all()):
        return None
    keys = torch.arange(width, device=columns.device)
    real = keys < length[:, None, None]
    if spec.attention == "full":
        return real
    if spec.attention == "causal_context":
        return real & causal_context(columns, width, start, length)
    # Where blocks are counted from the prompt, each part of an answer begins with one.
    return real & block_causal(columns, width, start, spec)
