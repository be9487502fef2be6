"""What a step looks at, what it decides and what it did: the messages around a canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.carried import Replaced, State
from dllm.state.noise import Noise
from dllm.state.plan import PassKind
from dllm.state.variants import Variants


@dataclass(frozen=True)
class Layout:
    """What every row of a canvas shares: its width and how it is cut into blocks."""

    num_rows: int
    num_columns: int  # L: the longest row
    block_length: int
    mask_token_id: int
    fill_token_id: int  # ends a finished row
    eos_token_ids: tuple[int, ...]
    # Tokens of each prompt with its slots, those included that enter the canvas later.
    lengths: tuple[int, ...]
    kept: tuple[int, ...]  # of them, those that the output keeps: what ends a last block is cut
    num_slots: int  # new tokens, the most of any row
    window_length: int  # columns from a block's start that a step may commit
    region_length: int = 0  # columns of the whole generated region, if a scheduler sees it all
    num_spare: int = 0  # further columns of the store, for what is fed besides the canvas
    can_shorten: bool = False  # a scheduler may cut rows off
    whole_block: bool = False  # a scheduler reads the logits of committed columns of the block
    # A scheduler revises: `commit_step` alone cannot tell the story, and rows may be held.
    keep_history: bool = False
    expand_token_id: int | None = None  # stands for two masks, in models that were taught it
    skip_after_end: bool = False  # what follows an end token is not committed
    admits: bool = False  # rows of any length may enter, of which nothing is known yet
    # Blocks that a row may have, where a wrapper calls other columns a block; None: by its length.
    own_most_blocks: int | None = None
    span_length: int = 1  # slots that a method which finds a row's length decodes together

    @property
    def most_blocks(self) -> int:
        """The most blocks that a row may have: there is a partial one at either end."""
        return self.own_most_blocks or self.num_slots // self.block_length + 2

    @cached_property
    def ragged(self) -> bool:
        """Whether rows differ in length, so that attention needs a key mask."""
        return self.can_shorten or self.admits or len(set(self.lengths)) > 1

    @cached_property
    def width(self) -> int:
        """W: the columns that a step looks at."""
        return self.region_length or self.window_length

    @cached_property
    def num_stored(self) -> int:
        """C: columns of the canvas, with spare ones in which any window ends."""
        return self.num_columns + max(self.width, self.window_length) + self.num_spare


@dataclass(frozen=True)
class Window:
    """The columns of each row that a step looks at."""

    columns: Tensor  # (B, W) int64
    tokens: Tensor  # (B, W) int64
    masked: Tensor  # (B, W) bool: may be committed now
    block: Tensor  # (B, W) bool: belongs to the row's block
    known: Tensor  # (B, W) bool: the pass gives its logits
    active: Tensor  # (B,) bool: the block has masks, or the row is held at it
    forced: Tensor | None = None  # (B,) bool: commits all that is masked, unasked
    kind: PassKind = "refresh"  # of the pass
    together: bool = False  # all rows take part, which the host knows

    def of_active(self, active: Tensor) -> Window:
        """Returns the window of which only the rows `active` (B,) bool take part."""
        active = self.active & active
        masked = self.masked & active[:, None]
        return replace(self, active=active, masked=masked, together=False)


# Tokens that a grammar refused, of them those about which it could not decide, and tokens that it
# wrote where no others would do.
TALLIED = ("rejected", "undecided", "rewritten")


@dataclass(frozen=True)
class Decision:
    """What to write after a step; everything but `commit` may be left out."""

    commit: Tensor  # (B, W) bool: masked columns that get their token
    tokens: Tensor | None = None  # (B, W) int64; None: the candidates' tokens
    num_steps: Tensor | None = None  # (B,) int64 schedule steps that this one stands for; None: 1
    remask: Tensor | None = None  # (B, W) bool: committed columns that are masked again
    edit: Tensor | None = None  # (B, W) bool: committed columns that get their token anew
    hold: Tensor | None = None  # (B,) bool: the row stays at its block though it is full
    length: Tensor | None = None  # (B,) int64 canvas column at which the row is cut off
    block_end: Tensor | None = None  # (B,) int64 canvas column at which the block ends
    gap: Tensor | None = None  # (B,) int64 columns of the row's gap that are in use from now on
    variants: Variants | None = None  # of each row, which the next pass compares
    planned: Tensor | None = None  # (B, n) int64 what the next step commits, -1 where less
    state: State | None = None  # what the next step finds in `view.state`; None: as it was
    replaced: Mapping[str, Replaced] | None = None  # of tensors of the state, some places
    compelled: Tensor | None = None  # (B,) int64 commits that a language left no choice of
    tally: Tensor | None = None  # (B, 3) int64 what a grammar cost, by `TALLIED`


@dataclass(frozen=True)
class Written:
    """The windows of one pass before and after it."""

    columns: Tensor  # (B, W) int64
    before: Tensor  # (B, W) int64 tokens
    after: Tensor  # (B, W) int64
    step: Tensor  # (B,) int64 forwards of each row before this one
    prompts: Tensor  # (B,) int64 whose windows they are


@dataclass(frozen=True)
class StepEvent:
    """What one step did to the window of each row."""

    kind: PassKind
    columns: Tensor  # (B, W) int64
    before: Tensor  # (B, W) int64 tokens before the step
    tokens: Tensor  # (B, W) int64 after the step
    drafts: Tensor  # (B, W) int64 what the model would put where a mask is left
    confidence: Tensor  # (B, W) float of the drafts
    mask_token_id: int
    prompts: tuple[int, ...] = ()  # whose row each place of the batch holds
    finished: tuple[int, ...] = ()  # the prompts of rows that this step ended
    left: int = 0  # no row of the batch has more masks, as far as the host knows

    @property
    def committed(self) -> Tensor:
        """Which columns this step wrote, edits included, (B, W) bool."""
        return (self.tokens != self.before) & (self.tokens != self.mask_token_id)

    @property
    def remasked(self) -> Tensor:
        """Which columns this step masked again, (B, W) bool."""
        return (self.tokens != self.before) & (self.tokens == self.mask_token_id)


PER_COLUMN = ("columns", "tokens", "masked", "block", "known", "fixed")  # (B, W)
PER_ROW = (  # (B,)
    *("length", "prompt_length", "num_slots", "step", "block_step", "block_masks"),
    *("num_blocks", "fresh", "prompts"),
)
OF_ROWS = (*PER_ROW, "gap", "room")  # the last ones None where no gap grows


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
    # (B,) int64: which prompt of the call each row is. Rows leave and others enter, so that what a
    # scheduler has of each prompt itself must be looked up by this.
    prompts: Tensor
    layout: Layout
    noise: Noise
    state: State = field(default_factory=dict)
    shadow: Candidates | None = None  # of the window, each column read without itself
    # (B,) int64 columns of the row's gap that are in use, and all of them; None: no gap grows
    gap: Tensor | None = None
    room: Tensor | None = None

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
