"""The state of B sequences while they are denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NEVER = -1  # commit_step of a column that the model did not commit

# What an end token does: nothing; end its row once all before it is there; cut the row at once.
AtEnd = Literal["ignore", "stop", "truncate"]


@dataclass(frozen=True)
class Layout:
    """What every row of a canvas shares: its width and how it is cut into blocks."""

    num_rows: int
    num_columns: int  # L: the longest row
    block_length: int
    mask_token_id: int
    fill_token_id: int  # ends a finished row
    eos_token_ids: tuple[int, ...]
    lengths: tuple[int, ...]  # tokens of each row, prompt and slots together

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length, so that attention needs a key mask."""
        return len(set(self.lengths)) > 1


@dataclass(frozen=True)
class Window:
    """The block that each row is at."""

    columns: Tensor  # (B, W) int64
    tokens: Tensor  # (B, W) int64
    masked: Tensor  # (B, W) bool: may be committed now
    active: Tensor  # (B,) bool: the block has masks


@dataclass(frozen=True)
class Commit:
    """What one step writes into the windows."""

    chosen: Tensor  # (B, W) bool
    tokens: Tensor  # (B, W) int64
    confidence: Tensor  # (B, W) float
    num_steps: Tensor | int = 1  # (B,) int64 schedule steps that it stands for


@dataclass(frozen=True)
class Status:
    """What the host must know between two steps, read in one transfer."""

    unfinished: bool  # some row still has masks
    entered: bool  # some row stands at a block that has not been forwarded yet
    broken: bool  # some row got logits that are not numbers
    remaining: int  # the most columns that any unfinished row has from its block's start on


class Canvas:
    """The tokens of B left-aligned rows, their blocks and their history.

    Column = position: the prompt of row b is in [0, prompt_length[b]), its slots follow, padding
    is at the right end. `block_length` spare columns after the longest row let every row's window
    have W distinct columns; they are never attended to. Tensors keep their shape and place.
    """

    def __init__(self, layout: Layout, tokens: Tensor, fixed: Tensor, prompt_length: Tensor):
        self.layout = layout
        self.tokens = tokens  # (B, C) int64, C = num_columns + block_length
        self.fixed = fixed  # (B, C) bool: prompt, padding and infill text, never changed
        self.prompt_length = prompt_length  # (B,) int64
        self.length = torch.tensor(layout.lengths, device=tokens.device)  # (B,) int64
        self.ends = torch.tensor(layout.eos_token_ids, dtype=torch.int64, device=tokens.device)
        self.origin = prompt_length  # (B,) int64: where blocks are counted from
        self.block_start = prompt_length.clone()  # (B,) int64
        self.block_masks = torch.zeros_like(prompt_length)  # (B,) masks when the block began
        self.step = torch.zeros_like(prompt_length)  # (B,) forwards the row took part in
        self.block_step = torch.zeros_like(prompt_length)  # (B,) schedule steps of this block
        self.finished = torch.zeros_like(prompt_length, dtype=torch.bool)  # (B,)
        self.broken = torch.zeros_like(self.finished)  # (B,)
        self.commit_step = torch.full_like(tokens, NEVER, dtype=torch.int32)  # (B, C)
        self.commit_confidence = torch.full_like(tokens, float("nan"), dtype=torch.float32)

    def count_blocks_from_zero(self) -> None:
        """Aligns blocks to column 0, as block-causal models were trained."""
        self.origin = torch.zeros_like(self.prompt_length)

    @property
    def masked(self) -> Tensor:
        """Which columns still wait for a token, (B, C) bool."""
        return (self.tokens == self.layout.mask_token_id) & ~self.fixed

    @property
    def num_blocks(self) -> Tensor:
        """How many blocks each row has, (B,) int64."""
        start = self.origin + self._blocks(self.prompt_length - self.origin)
        return (self.length - start + self.layout.block_length - 1) // self.layout.block_length

    def window(self, eligible: Tensor | None = None) -> Window:
        """Returns each row's block; `eligible` (B, W) bool narrows what may be committed."""
        offsets = torch.arange(self.layout.block_length, device=self.tokens.device)
        columns = self.block_start[:, None] + offsets
        masked = self.masked.gather(1, columns)
        active = masked.any(1)
        if eligible is not None:
            masked = masked & eligible
        return Window(columns, self.tokens.gather(1, columns), masked, active)

    def commit(self, window: Window, commit: Commit) -> None:
        """Writes what a step decided, and records when and how surely.

        A column whose confidence is not a number is left masked and its row marked as broken.
        """
        finite = commit.confidence.isfinite()
        chosen = commit.chosen & finite
        self.broken = self.broken | (window.masked & ~finite).any(1)
        step = self.step.to(torch.int32)[:, None].expand_as(chosen)
        columns = window.columns
        self.tokens.scatter_(1, columns, torch.where(chosen, commit.tokens, window.tokens))
        self._record(self.commit_step, columns, chosen, step)
        self._record(self.commit_confidence, columns, chosen, commit.confidence.float())
        self.step += window.active
        self.block_step += torch.where(window.active, commit.num_steps, 0)

    def settle(self, lockstep: bool, at_eos: AtEnd) -> Status:
        """Finishes complete rows, moves rows to their next block and reports, in one transfer.

        `lockstep` holds every row at its block until all rows have filled theirs.
        """
        if at_eos == "truncate":
            self._truncate()
        masked = self.masked
        if at_eos != "ignore":
            masked = masked & ~self._fill_complete(masked)
        self.finished = self.finished | ~masked.any(1)
        first = masked.int().argmax(1)
        target = self.origin + self._blocks(first - self.origin)
        moving = (target != self.block_start) & ~self.finished
        if lockstep:
            moving = moving & (moving | self.finished).all()
        self._enter(moving, target, masked)
        entered = ((self.block_step == 0) & ~self.finished).any()
        left = torch.where(self.finished, 0, self.length - self.block_start).max()
        flags = [~self.finished.all(), entered, self.broken.any(), left]
        unfinished, new, broken, remaining = torch.stack([f.long() for f in flags]).tolist()
        return Status(bool(unfinished), bool(new), bool(broken), remaining)

    def _enter(self, moving: Tensor, target: Tensor, masked: Tensor) -> None:
        first_block = (self.step == 0) & ~self.finished
        self.block_start = torch.where(moving, target, self.block_start)
        self.block_step = torch.where(moving, 0, self.block_step)
        offsets = torch.arange(self.layout.block_length, device=masked.device)
        count = masked.gather(1, self.block_start[:, None] + offsets).sum(1)
        self.block_masks = torch.where(moving | first_block, count, self.block_masks)

    def _ended(self) -> Tensor:
        """Which columns hold a generated end token, (B, C) bool."""
        return torch.isin(self.tokens, self.ends) & ~self.fixed

    def _truncate(self) -> None:
        """Overwrites everything after the first end token of each row."""
        ended = self._ended().int()
        after = (ended.cumsum(1) > ended) & ~self.fixed
        self.tokens.masked_fill_(after, self.layout.fill_token_id)
        self.commit_step.masked_fill_(after, NEVER)
        self.commit_confidence.masked_fill_(after, float("nan"))

    def _fill_complete(self, masked: Tensor) -> Tensor:
        """Fills every row whose first end token has no mask before it; (B, 1) bool, such rows."""
        pending = masked.int().cumsum(1) > 0
        complete = (self._ended() & ~pending).any(1, keepdim=True)
        self.tokens.masked_fill_(masked & complete, self.layout.fill_token_id)
        return complete

    def _blocks(self, distance: Tensor) -> Tensor:
        block = self.layout.block_length
        return distance.div(block, rounding_mode="floor") * block

    @staticmethod
    def _record(history: Tensor, columns: Tensor, commit: Tensor, value: Tensor) -> None:
        history.scatter_(1, columns, torch.where(commit, value, history.gather(1, columns)))


def new_canvas(
    layout: Layout,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[Sequence[int]],
    device: torch.device,
) -> Canvas:
    """Returns a canvas of prompts followed by slots; a slot that holds the mask id is open."""
    width = layout.num_columns + layout.block_length
    rows = [[*prompt, *slot] for prompt, slot in zip(prompts, slots, strict=True)]
    padded = [row + [layout.fill_token_id] * (width - len(row)) for row in rows]
    tokens = torch.tensor(padded, dtype=torch.int64)
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    generated = torch.arange(width) >= prompt_length[:, None]
    fixed = ~(generated & (tokens == layout.mask_token_id))
    return Canvas(layout, tokens.to(device), fixed.to(device), prompt_length.to(device))
