"""What methods share that let a row's gap grow and shrink: moved tokens, and signs of its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dllm.options import Count, Probability, Range
from dllm.schedulers.base import (
    Candidates,
    Decision,
    ModelSpec,
    Needs,
    Scheduler,
    State,
    View,
    best,
)
from dllm.state.softmax import largest_but

_CHECKED = 32  # end tokens that the confidence in an end is a mean of, however many there are


@dataclass(frozen=True)
class Growing(Scheduler):
    """A method that finds an answer's length: `max_new_tokens` is the most, `begin` the first.

    Its gap is one block to the loop. By itself it decodes a span of `block_length` slots at a time,
    the one that has the first mask: what is surer than `threshold`, or else the surest.
    """

    begin: Count = 64  # masks of the first forward (initial_gen_length)
    threshold: Probability = 0.9  # probability, compared with > (high_conf_threshold)
    step: Annotated[int, Range(1, 2**10)] = 8  # masks that come at a time (expansion_factor)

    can_revise = True  # text moves where masks come in front of it
    moves_tokens = True

    def needs(self, num_slots: int, block_length: int) -> Needs:
        return Needs(room=num_slots, begin=self.begin, distributions=True)

    def check_model(self, spec: ModelSpec) -> None:
        name = self.summary()["name"]
        if spec.attention != "full":
            raise ValueError(
                f"scheduler {name!r} adds and takes masks at the end, and attention "
                f"{spec.attention!r} of this model goes by columns: it needs full attention, as "
                "LLaDA and Dream have"
            )
        if not spec.eos_token_ids:
            raise ValueError(
                f"scheduler {name!r} goes by where the model expects its text to end, and this "
                "model has no end token: decode at a fixed length with another scheduler"
            )

    def chosen(self, candidates: Candidates, view: View) -> Tensor:
        """Returns the masks of the row's span that are committed, (B, W) bool."""
        open_ = view.masked & self.within(view)
        sure = open_ & (candidates.confidence > self.threshold)
        return torch.where(sure.any(1, keepdim=True), sure, best(candidates.confidence, open_))

    def within(self, view: View) -> Tensor:
        """Returns the columns of the span that each row is at, (B, W) bool."""
        assert view.gap is not None
        start = view.state["at"]
        end = (start + view.layout.span_length).minimum(view.gap)
        return (view.offset >= start[:, None]) & (view.offset < end[:, None])

    def moved_on(self, tokens: Tensor, gap: Tensor, view: View) -> Tensor:
        """Returns the slot where each row's span begins once it holds `tokens`, (B,) int64."""
        start, slot, span = view.state["at"], view.offset, view.layout.span_length
        open_ = (tokens == view.layout.mask_token_id) & (slot >= start[:, None])
        open_ = open_ & (slot < gap[:, None])
        first = torch.where(open_, slot, gap[:, None]).amin(1)
        whole = start + (first - start).div(span, rounding_mode="floor") * span
        return torch.where(open_.any(1), whole, gap)


def expects_end(candidates: Candidates, view: View) -> Tensor:
    """Returns at which columns an end is the most probable token, (B, W) bool; no mask counts."""
    raw = candidates.logits if candidates.raw is None else candidates.raw
    return largest_but(raw, view.layout.mask_token_id) == end_token(view)


def confidence_in_end(candidates: Candidates, view: View) -> Tensor:
    """Returns how sure the model is that the text ends in the gap, (B,) in [0, 1].

    The probabilities of the end at the last 32 columns that expect one, summed and divided by 32
    however many there are (DAEDAL).
    """
    assert view.gap is not None
    slot = view.offset
    ends = expects_end(candidates, view) & (slot >= 0) & (slot < view.gap[:, None])
    from_right = ends.flip(1).cumsum(1).flip(1)
    probability = candidates.log_prob(torch.full_like(view.tokens, end_token(view))).exp()
    counted = ends & (from_right <= _CHECKED)
    return probability.masked_fill(~counted, 0).sum(1) / _CHECKED


def end_token(view: View) -> int:
    """Returns the token that ends a text."""
    return view.layout.eos_token_ids[0]


def with_masks(tokens: Tensor, before: Tensor, count: Tensor, view: View) -> Tensor:
    """Returns the window (B, W) int64 with `count` (B,) masks in front of slot `before` (B,).

    A negative count takes slots from the gap's end instead.
    """
    assert view.gap is not None
    assert view.room is not None
    slot, more = view.offset, count.clamp(min=0)[:, None]
    gap, before = (view.gap + count)[:, None], before[:, None]
    place = torch.arange(tokens.shape[1], device=tokens.device)
    source = torch.where(slot >= before + more, place - more, place)
    after = tokens.gather(1, source.clamp(min=0))
    after = after.masked_fill((slot >= before) & (slot < before + more), view.layout.mask_token_id)
    inside = (slot >= 0) & (slot < view.room[:, None])
    after = after.masked_fill(inside & (slot >= gap), view.layout.fill_token_id)
    return torch.where(inside, after, tokens)


def rewritten(tokens: Tensor, gap: Tensor, state: State, view: View) -> Decision:
    """Returns the decision that leaves the window (B, W) with `tokens` and a gap of `gap` (B,)."""
    masked = tokens == view.layout.mask_token_id
    return Decision(
        view.masked & ~masked,
        tokens=tokens,
        edit=view.committed & ~masked & (tokens != view.tokens),
        remask=view.committed & masked,
        gap=gap,
        state=state,
    )
