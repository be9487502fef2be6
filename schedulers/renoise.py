"""Renoising (DiffusionGemma): sure columns keep a drawn token, all others become noise again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dllm.models.config import UniformSpec
from dllm.options import Amount, Count, Range
from dllm.schedulers.base import (
    Candidates,
    Decision,
    ModelSpec,
    Needs,
    Scheduler,
    Setup,
    State,
    View,
    rank,
)

NOISE = -1  # in `accepted`: the column is fed a random token
_Temperature = Annotated[float, Range(1e-6, 1e6)]
_DRAWS = 3  # uniform numbers of a column in a forward: its noise, and two that choose its token


@dataclass(frozen=True)
class Renoise(Scheduler):
    """Draws all tokens of a block, and feeds those whose entropies sum to <= `entropy_bound`.

    The others are fed as random tokens again, and every forward chooses anew. A block is written
    at once, with its most probable tokens: when they are those of the `stability_threshold`
    forwards before and the mean entropy is < `confidence_threshold`, or after `steps` forwards.
    The temperature falls from `t_max` to `t_min`, in equal parts, the last of which is not taken.

    Only for models of the uniform process, in which a column that waits holds a random token and
    none is a mask (DiffusionGemma).
    """

    steps: Count = 48  # forwards of a block, at most
    entropy_bound: Amount = 0.1  # nats; the largest of the entropies does not count
    t_max: _Temperature = 0.8
    t_min: _Temperature = 0.4
    # Forwards, whose tokens are remembered; 0: stability is not asked for.
    stability_threshold: Annotated[int, Range(0, 1000)] = 1
    confidence_threshold: Amount = 0.005  # nats; 0: all `steps` are taken

    source = (
        "huggingface/transformers models/diffusion_gemma/generation_diffusion_gemma.py "
        "(EntropyBoundSampler), sgl-project/sglang Gemma4Renoise; arXiv 2505.24857"
    )
    statistic = "entropy, after temperature"
    constant_needs = Needs(distributions=True)

    def __post_init__(self) -> None:
        if self.t_max < self.t_min:
            raise ValueError(
                f"t_max={self.t_max} is where the temperature begins: it must be at least the "
                f"t_min={self.t_min} that it falls to"
            )

    @property
    def may_skip(self) -> bool:
        return True

    def check_model(self, spec: ModelSpec) -> None:
        if not isinstance(spec, UniformSpec):
            raise ValueError(
                "scheduler 'renoise' feeds random tokens where a masked model expects its mask: it "
                "is for models of the uniform process, such as DiffusionGemma; take "
                "'entropy_bound', whose rule is the same, over masks"
            )

    def start(self, setup: Setup) -> State:
        shape, whole = (setup.num_rows, setup.width), {"dtype": torch.int64, "device": setup.device}
        past = (setup.num_rows, self.stability_threshold, setup.width)
        return {
            "accepted": torch.full(shape, NOISE, **whole),  # type: ignore[call-overload]
            "past": torch.full(past, NOISE, **whole),  # type: ignore[call-overload]
        }

    def temperature(self, step: Tensor) -> Tensor:
        """Returns the temperature (B,) float32 of a block's forward number `step` (B,), from 0."""
        left = (self.steps - step) / self.steps
        return self.t_min + (self.t_max - self.t_min) * left

    def fed(self, view: View) -> Tensor:
        """Returns the tokens (B, W) of the next forward: as written, accepted or random."""
        vocabulary = view.layout.mask_token_id  # the flag stands right behind the last token
        drawn = (_uniform(view, 0) * vocabulary).long().clamp(max=vocabulary - 1)
        accepted = view.state.get("accepted")
        if accepted is None:
            return drawn.where(view.masked, view.tokens)
        drawn = drawn.where((accepted == NOISE) | view.fresh[:, None], accepted)
        return drawn.where(view.masked, view.tokens)

    def select(self, candidates: Candidates, view: View) -> Decision:
        heat = self.temperature(view.block_step)[:, None, None]
        tempered = Candidates(candidates.logits / heat, candidates.token)
        entropy, masked = tempered.entropy, view.masked
        accept = self._is_within(entropy, masked)
        accepted = torch.where(accept, _draw(tempered.probabilities(), view), NOISE)
        past = view.state["past"].masked_fill(view.fresh[:, None, None], NOISE)
        same = (past == candidates.token[:, None]) | ~masked[:, None]
        mean = (entropy * masked).sum(1) / masked.sum(1).clamp(min=1)
        done = same.all(2).all(1) & (mean < self.confidence_threshold)
        done = done | (view.block_step + 1 >= self.steps)
        past = torch.cat([past, candidates.token[:, None]], 1)[:, 1:]
        return Decision(masked & done[:, None], state={"accepted": accepted, "past": past})

    def _is_within(self, entropy: Tensor, masked: Tensor) -> Tensor:
        """Returns the surest columns whose entropies, all before them summed, are in the bound."""
        place = rank(-entropy, masked)
        ranked = torch.zeros_like(entropy).scatter(1, place, entropy.masked_fill(~masked, 0))
        before = ranked.cumsum(1) - ranked
        return (before <= self.entropy_bound).gather(1, place) & masked


def _uniform(view: View, draw: int) -> Tensor:
    """Returns a uniform number for each column, (B, W) float64, another for each draw."""
    step = view.step * _DRAWS + draw
    return view.noise.columns(view.columns, step, view.masked).double()


def _draw(probability: Tensor, view: View) -> Tensor:
    """Returns tokens (B, W) int64 drawn from distributions (B, W, V), by their running sums.

    A number for each token, as elsewhere, would be gigabytes for a canvas of 256 columns.
    """
    # Two float32 numbers make one that is fine enough for the least probable of many tokens.
    uniform = (_uniform(view, 1) * 2**24).floor() * 2**-24 + _uniform(view, 2) * 2**-24
    sums = probability.double().cumsum(-1)
    wanted = uniform[..., None] * sums[..., -1:]
    return torch.searchsorted(sums, wanted, right=True)[..., 0].clamp(max=sums.shape[-1] - 1)
