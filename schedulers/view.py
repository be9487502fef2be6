"""What a scheduler may look at besides the candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.layout import Layout
from dllm.state.noise import Noise

# What a method carries between steps: tensors with one entry a row, (B, ...).
State = Mapping[str, Tensor]

PER_COLUMN = ("columns", "tokens", "masked", "block", "known", "fixed")  # (B, W)
PER_ROW = (  # (B,)
    "length",
    "prompt_length",
    "num_slots",
    "step",
    "block_step",
    "block_masks",
    "num_blocks",
    "fresh",
)


@dataclass(frozen=True)
class View:
    """A window of each row: its block, or the whole generated region for those that ask for it."""

    columns: Tensor  # (B, W) int64 canvas columns of the window
    tokens: Tensor  # (B, W) int64 what they hold
    masked: Tensor  # (B, W) bool: may be committed now
    block: Tensor  # (B, W) bool: belongs to the block that the row is at
    known: Tensor  # (B, W) bool: this pass computed the column's logits
    fixed: Tensor  # (B, W) bool: prompt, given text and padding
    length: Tensor  # (B,) int64 tokens of the row, prompt and slots together
    prompt_length: Tensor  # (B,) int64
    num_slots: Tensor  # (B,) int64 masks of the row before the first step
    step: Tensor  # (B,) int64 forwards this row took part in before
    block_step: Tensor  # (B,) int64 schedule steps of this block that are over
    block_masks: Tensor  # (B,) int64 masks of the block when it began
    num_blocks: Tensor  # (B,) int64
    # (B,) bool: the scheduler is asked for the first time in this block. Not the same as a
    # block_step of 0: a cache may decide a block's first step by itself.
    fresh: Tensor
    layout: Layout
    noise: Noise
    state: State = field(default_factory=dict)
    shadow: Candidates | None = None  # of the window, each column read without itself

    @property
    def committed(self) -> Tensor:
        """Which columns hold a token that the model wrote, (B, W) bool."""
        return ~self.fixed & (self.tokens != self.layout.mask_token_id)

    @property
    def left(self) -> Tensor:
        """Which columns of the block hold a mask, with or without logits, (B, W) bool."""
        return (self.tokens == self.layout.mask_token_id) & ~self.fixed & self.block

    @property
    def offset(self) -> Tensor:
        """Each column's place after the prompt, (B, W) int64, 0 the first slot."""
        return self.columns - self.prompt_length[:, None]

    def uniform(self) -> Tensor:
        """Returns one uniform number a column, (B, W) float32, seeded per row."""
        return self.noise.columns(self.columns, self.step, self.masked)

    def is_end(self, tokens: Tensor) -> Tensor:
        """Returns which of some tokens (...) end a text, bool."""
        ended = torch.zeros_like(tokens, dtype=torch.bool)
        for token in self.layout.eos_token_ids:  # a few, known to the host
            ended = ended | (tokens == token)
        return ended

    def first_of_block(self) -> Tensor:
        """Returns where each row's block begins in its window, (B,) int64."""
        return self.block.int().argmax(1)

    def at(self, index: Tensor) -> View:
        """Returns the view of the window's columns `index` (B, n) alone."""
        shadow = self.shadow.at(index) if self.shadow is not None else None
        narrow = {name: getattr(self, name).gather(1, index) for name in PER_COLUMN}
        return replace(self, **narrow, shadow=shadow)

    def of_variants(self, columns: Tensor) -> View:
        """Returns the view of R variants of each row, which fill `columns` (B, R); B * R rows."""
        count = columns.shape[1]
        names = PER_COLUMN + PER_ROW
        each = {name: getattr(self, name).repeat_interleave(count, 0) for name in names}
        each["masked"] = each["masked"] & (each["columns"] != columns.flatten()[:, None])
        state = {name: value.repeat_interleave(count, 0) for name, value in self.state.items()}
        return replace(self, **each, state=state)


def freeze(old: State, new: State, active: Tensor) -> State:
    """Returns the new state of the rows that took part in a step and the old one of the others."""

    def merged(name: str) -> Tensor:
        where = active.view(-1, *[1] * (new[name].ndim - 1))
        return torch.where(where, new[name], old[name])

    return {name: merged(name) for name in new}
