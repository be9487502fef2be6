"""Insertion and deletion (LLaDA2.2): tokens of a block change, go, or make room for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.options import Probability, Range, TokenId
from dllm.schedulers.base import (
    Candidates,
    Decision,
    Needs,
    Scheduler,
    Setup,
    State,
    View,
    best,
    rank,
)

_NONE = -1  # no token


@dataclass(frozen=True)
class InsertDelete(Scheduler):
    """Commits masks > `threshold`, edits tokens > `editing_threshold`, inserts and deletes.

    For models trained to propose two tokens that are no text (LLaDA2.2). Where `delete_token_id` is
    written, the column goes and what follows moves to the left; where `split_token_id` is, what
    stood there moves to the right and a mask takes its place. All of it stays inside the block:
    masks fill its end, and what is pushed over it is lost. Nothing moves past given text.

    A forward resolves one of the masks that the block began with at least, and as many more as were
    inserted. When those of the beginning are gone, every forward fills all masks, and the last one
    of `post_steps` such forwards writes text alone; so does any forward after as many as the block
    has columns and `post_steps` more. A block ends sooner if a forward changes nothing. If it has
    been what it is before, the least sure change becomes a token not yet tried there.
    """

    threshold: Annotated[float, Range(0, 2)] = 0.5  # a probability, compared with >
    editing_threshold: Probability = 0.0  # the same
    # Forwards without masks of the beginning, in all; what each of them found is remembered.
    post_steps: Annotated[int, Range(0, 1000)] = 16
    delete_token_id: TokenId | None = None  # of the checkpoint's config.json; None: none is deleted
    split_token_id: TokenId | None = None  # of the checkpoint's config.json; None: none is inserted

    can_revise = True
    may_skip = True  # a mask may be deleted, and the block then gets another one at its end
    constant_needs = Needs(distributions=True)
    moves_tokens = True
    source = "sgl-project/sglang 0.5.23 joint_threshold_indel.py:JointThresholdInDel"
    statistic = "confidence, of masks and of tokens that are there"

    def token_ids(self) -> dict[str, tuple[int, ...]]:
        ids = {"delete_token_id": self.delete_token_id, "split_token_id": self.split_token_id}
        return {name: () if token is None else (token,) for name, token in ids.items()}

    def revision_limit(self, block_length: int) -> int:
        return block_length + self.post_steps + 1

    def start(self, setup: Setup) -> State:
        size, steps = (setup.num_rows, setup.width), self.revision_limit(setup.block_length)
        none = torch.full((size[0], steps, size[1]), _NONE, dtype=torch.int64, device=setup.device)
        return {
            "post": torch.zeros(size[0], dtype=torch.int64, device=setup.device),
            "original": torch.zeros(size, dtype=torch.bool, device=setup.device),
            "seen": none,  # (B, T, W) what the block was before each of its forwards
            "tried": none.clone(),  # (B, T, W) tokens that each of them chose
        }

    def select(self, candidates: Candidates, view: View) -> Decision:
        state = _entered(view)
        block = _Block(candidates, view, state["original"])
        post = state["post"] + ~block.original.any(1)
        token, chance = block.proposed()
        fill = self._fill(block, chance)
        last = self._is_last(block, post, fill)[:, None]
        fill = torch.where(last, block.masked, fill)
        edit = block.written & (chance > self.editing_threshold) & (token != view.tokens)
        write = fill | edit
        token = torch.where(last, self._text(block, token), token)
        here = view.tokens.masked_fill(~view.block, _NONE)
        again = (state["seen"] == here[:, None]).all(-1).any(1, keepdim=True) & ~last
        changing = write & again & (token != view.tokens)
        token = block.varied(token, best(-chance, changing), state["tried"])
        after, original = self._moved(block, torch.where(write, token, view.tokens))
        masked = after == view.layout.mask_token_id
        full = ~(masked & view.block & ~view.fixed).any(1)
        return Decision(
            block.masked & ~masked,
            tokens=after,
            edit=block.written & ~masked & (after != view.tokens),
            remask=block.written & masked,
            hold=full & ~last[:, 0] & write.any(1),
            state={
                "post": post,
                "original": original,
                "seen": _noted(state["seen"], view, here),
                "tried": _noted(state["tried"], view, token.masked_fill(~write, _NONE)),
            },
        )

    def _fill(self, block: _Block, chance: Tensor) -> Tensor:
        """Returns which masks get a token where this is not the last forward, (B, W) bool."""
        masked, original = block.masked, block.original
        least = 1 + masked.sum(1, keepdim=True) - original.sum(1, keepdim=True)
        passed = (chance > self.threshold) & masked
        scheduled = (rank(chance, masked) < least) & masked
        fill = torch.where(passed.sum(1, keepdim=True) < least, scheduled, passed)
        return torch.where(original.any(1, keepdim=True), fill, masked)

    def _is_last(self, block: _Block, post: Tensor, fill: Tensor) -> Tensor:
        """Returns whether this forward is the last that may change the block, (B,) bool."""
        ended = post >= self.post_steps
        if self.post_steps == 0:
            ended = ~(block.original & ~fill).any(1)
        view = block.view
        return ended | (view.block_step >= view.layout.block_length + self.post_steps)

    def _text(self, block: _Block, token: Tensor) -> Tensor:
        """Returns the tokens (B, W), the best one that is text in place of one that is not."""
        mask = block.view.layout.mask_token_id
        ids = [mask, *(it for it in (self.delete_token_id, self.split_token_id) if it is not None)]
        logits, other = block.candidates.logits.clone(), torch.zeros_like(block.masked)
        for it in ids:  # three, known to the host
            logits[..., it] = -torch.inf
            other = other | (token == it)
        return torch.where(other, logits.argmax(-1), token)

    def _moved(self, block: _Block, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a block of chosen tokens (B, W) once columns went and came, and its masks.

        Those of them that the block began with: (B, W) int64 and (B, W) bool.
        """
        tokens, movable = block.view.tokens, block.masked | block.written
        none = torch.zeros_like(movable)
        goes = none if self.delete_token_id is None else chosen == self.delete_token_id
        comes = none if self.split_token_id is None else chosen == self.split_token_id
        goes, comes = goes & movable, comes & movable
        place, end = _places(comes.long() - goes.long(), movable)
        width = tokens.shape[1]
        lost = tokens.new_full((), width)  # a column behind the window
        first = torch.where((place < end) & ~goes, place, lost)
        second = torch.where((place + 1 < end) & comes, place + 1, lost)

        def arranged(moved: Tensor, new: Tensor, old: Tensor) -> Tensor:
            empty = F.pad(new, (0, 1))
            return empty.scatter(1, first, moved).scatter(1, second, old)[:, :width]

        masks = torch.full_like(tokens, block.view.layout.mask_token_id)
        after = arranged(torch.where(comes, masks, chosen), masks, tokens)
        return after, arranged(block.began & ~comes, none, block.began)


@dataclass(frozen=True)
class _Block:
    """A block as a forward found it."""

    candidates: Candidates
    view: View
    began: Tensor  # (B, W) bool: what was a mask when the block began

    @property
    def masked(self) -> Tensor:
        """Masks that may get a token, (B, W) bool."""
        return self.view.masked & self.view.block

    @property
    def written(self) -> Tensor:
        """Tokens that may change, (B, W) bool."""
        return self.view.committed & self.view.block & self.view.known

    @property
    def original(self) -> Tensor:
        """Masks of the beginning that may get a token, (B, W) bool."""
        return self.masked & self.began

    def proposed(self) -> tuple[Tensor, Tensor]:
        """Returns the proposed tokens (B, W) and their probability (B, W).

        The mask is one of them, but not where it would leave a mask of the beginning as it is.
        """
        candidates, mask = self.candidates, self.view.layout.mask_token_id
        masks = torch.full_like(candidates.token, mask)
        opens = (candidates.logits.argmax(-1) == mask) & ~self.original
        chance = torch.where(opens, candidates.log_prob(masks).exp(), candidates.confidence)
        return torch.where(opens, masks, candidates.token), chance

    def varied(self, token: Tensor, where: Tensor, tried: Tensor) -> Tensor:
        """Returns the tokens (B, W), at one column of a row the best of those not yet tried there.

        `where` (B, W) bool is that column; a row without one keeps its tokens.
        """
        column, mask = where.int().argmax(1)[:, None, None], self.view.layout.mask_token_id
        logits = self.candidates.logits
        logits = logits.gather(1, column.expand(-1, 1, logits.shape[-1]))[:, 0].clone()
        keeps = (self.original & where).any(1)
        logits[:, mask] = logits[:, mask].masked_fill(keeps, -torch.inf)
        past = tried.gather(2, column.expand(-1, tried.shape[1], 1))[..., 0]
        past = torch.where(past == _NONE, logits.shape[-1], past)  # one token more takes them
        logits = F.pad(logits, (0, 1)).scatter(1, past, -torch.inf)[:, :-1]
        return torch.where(where, logits.argmax(-1, keepdim=True), token)


def _entered(view: View) -> State:
    """Returns the state before this forward, anew in a block that was just entered."""
    fresh, state = view.fresh[:, None], view.state
    return {
        "post": state["post"].masked_fill(view.fresh, 0),
        "original": torch.where(fresh, view.left, state["original"]),
        "seen": state["seen"].masked_fill(fresh[..., None], _NONE),
        "tried": state["tried"].masked_fill(fresh[..., None], _NONE),
    }


def _noted(history: Tensor, view: View, tokens: Tensor) -> Tensor:
    """Returns a history (B, T, W) with the tokens (B, W) of this forward of the block."""
    step = view.block_step.clamp(max=history.shape[1] - 1)[:, None, None]
    return history.scatter(1, step.expand(-1, 1, history.shape[2]), tokens[:, None])


def _places(more: Tensor, movable: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the column that each one moves to, and the one it must stay before, (B, W) int64.

    `more` (B, W) int64 is how many columns each one adds. What is not movable stays.
    """
    width = more.shape[1]
    columns = torch.arange(width, device=more.device).expand_as(more)
    shift = more.cumsum(1)
    wall = torch.where(movable, -1, columns).cummax(1).values
    before = F.pad(shift, (1, 0)).gather(1, wall + 1)  # up to the wall, which adds none
    walls = torch.where(movable, width, columns)
    end = walls.flip(1).cummin(1).values.flip(1)
    return columns + shift - more - before, torch.where(movable, end, width)
