"""The state of B sequences while they are denoised."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from dllm.models.seen import Seen
from dllm.state.drafts import Drafts
from dllm.state.layout import Layout
from dllm.state.plan import StepPlan
from dllm.state.variants import Branches
from dllm.state.window import Change, Window, Written

NEVER = -1  # commit_step of a column that the model did not commit


class Canvas:
    """The tokens of B left-aligned rows, their blocks and their history.

    Column = position: the prompt of row b is in [0, prompt_length[b]), its slots follow, padding
    is at the right end. Spare columns after the longest row let every row's window have W
    distinct columns; they are never attended to. Tensors keep their shape and place.
    """

    announced: Tensor | None = None  # (B, n) int64 columns that the next step commits
    branches: Branches | None = None  # variants that the next pass compares
    drafts: Drafts | None = None  # of a verifier, with its count of forwards
    seen: Seen | None = None  # by earlier passes, if plans ask for attention maps
    skip_after_end = False  # what follows an end token is not committed
    keep_history = False  # a scheduler revises: `commit_step` alone cannot tell the story

    def __init__(self, layout: Layout, tokens: Tensor, fixed: Tensor, prompt_length: Tensor):
        self.layout = layout
        self.tokens = tokens  # (B, C) int64, C = layout.num_stored
        self.fixed = fixed  # (B, C) bool: prompt, padding and infill text, never changed
        self.given = fixed  # (B, C) bool: the same before anything was cut off
        self.prompt_length = prompt_length  # (B,) int64
        self.prompts = torch.arange(len(tokens), device=tokens.device)  # (B,) int64 whose rows
        self.length = torch.tensor(layout.lengths, device=tokens.device)  # (B,) int64
        self.full_length = self.length  # (B,) before anything was cut off
        self.ends = torch.tensor(layout.eos_token_ids, dtype=torch.int64, device=tokens.device)
        self.numbers = torch.arange(tokens.shape[1], device=tokens.device)  # (C,) int64 columns
        self.first_block = prompt_length.clone()  # (B,) int64: where blocks are counted from
        self.block_start = prompt_length.clone()  # (B,) int64
        self.block_end = prompt_length.clone()  # (B,) int64, the next block's start
        self.block_masks = torch.zeros_like(prompt_length)  # (B,) masks when the block began
        self.entry_length = self.length.clone()  # (B,) int64 length when the block began
        self.entry_step = torch.zeros_like(prompt_length)  # (B,) forwards before the block began
        # (B,) int64: columns before it held their final tokens in the last pass
        self.clean = torch.zeros_like(prompt_length)
        self.num_slots = self.masked.sum(1)  # (B,) int64 masks before the first step
        self.step = torch.zeros_like(prompt_length)  # (B,) forwards the row took part in
        self.row_forwards = torch.zeros_like(prompt_length)  # (B,) the same, variants counted
        self.block_step = torch.zeros_like(prompt_length)  # (B,) schedule steps of this block
        self.finished = torch.zeros_like(prompt_length, dtype=torch.bool)  # (B,)
        self.fresh = torch.ones_like(self.finished)  # (B,) no scheduler was asked in this block
        self.broken = torch.zeros_like(self.finished)  # (B,)
        self.held = torch.zeros_like(self.finished)  # (B,) stays at its block though it is full
        self.commit_step = torch.full_like(tokens, NEVER, dtype=torch.int32)  # (B, C)
        self.commit_confidence = torch.full_like(tokens, float("nan"), dtype=torch.float32)
        # (B, C) int32: forwards before a block that begins at the column; NEVER: none was entered
        self.block_entry = torch.full_like(self.commit_step, NEVER)
        self.history: list[Written] = []
        self._kept: dict[str, tuple[Tensor, ...]] = {}  # what was made of tensors, and of which

    def count_blocks_from_zero(self) -> None:
        """Aligns blocks to column 0, as block-causal models were trained."""
        block = self.layout.block_length
        start = self.prompt_length.div(block, rounding_mode="floor") * block
        self.first_block, self.block_start, self.block_end = start, start.clone(), start.clone()

    def read_prompt(self, end: Tensor) -> None:
        """Notes that a pass has fed the prompts up to columns `end` (B,)."""
        self.clean = torch.maximum(self.clean, torch.minimum(self.first_block, end))

    @property
    def masked(self) -> Tensor:
        """Which columns still wait for a token, (B, C) bool."""
        return (self.tokens == self.layout.mask_token_id) & ~self.fixed

    @property
    def active(self) -> Tensor:
        """Which rows take part in the next pass, (B,) bool: their block has masks, or is held."""
        return ((self.masked & self.block).any(1) | self.held) & ~self.finished

    @property
    def block(self) -> Tensor:
        """Which columns belong to the block that each row is at, (B, C) bool."""
        columns = self.numbers
        return (columns >= self.block_start[:, None]) & (columns < self.block_end[:, None])

    @property
    def num_blocks(self) -> Tensor:
        """How many blocks each row has, (B,) int64."""
        block = self.layout.block_length
        return self.keep(
            "num_blocks",
            lambda first, length: (length - first + block - 1) // block,
            self.first_block,
            self.full_length,
        )

    @property
    def first_slot(self) -> Tensor:
        """Where the keys of each row begin in a store of as many rows, (B, 1) int64."""
        width = self.layout.num_stored
        return self.keep(
            "first_slot",
            lambda rows: width * torch.arange(len(rows), device=rows.device)[:, None],
            self.prompts,
        )

    def columns(self) -> Tensor:
        """Returns the columns of each row that a step looks at, (B, W) int64."""
        start = self.first_block if self.layout.region_length else self.block_start
        offsets = self.numbers[: self.layout.width]
        return self.keep("columns", lambda start: start[:, None] + offsets, start)

    def window(self, plan: StepPlan | None = None, active: Tensor | None = None) -> Window:
        """Returns what a step looks at; `plan` is the pass that it follows, None one of all.

        `active` (B,) bool are the rows that take part; None: those whose block has masks.
        """
        columns = self.columns()
        masked = self.open_columns()
        block = (columns >= self.block_start[:, None]) & (columns < self.block_end[:, None])
        if active is None:
            active = (masked & block).any(1) | self.held
        known = plan.known if plan is not None else None
        known = torch.ones_like(masked) if known is None else known
        masked = masked & known & active[:, None]
        if plan is not None and plan.eligible is not None:
            masked = masked & plan.eligible
        return Window(columns, self.tokens.gather(1, columns), masked, block, known, active)

    def open_columns(self) -> Tensor:
        """Returns which columns of the window may be committed, (B, W) bool."""
        masked = self.masked
        if self.skip_after_end:
            masked = masked & (self.ended.int().cumsum(1) == 0)
        return masked.gather(1, self.columns())

    def keep(self, name: str, make: Callable[..., Tensor], *of: Tensor) -> Tensor:
        """Returns what is made of tensors that are replaced but never written in place.

        It is made anew when one of them is another tensor than the last time.
        """
        made, *last = self._kept.get(name, (None,))
        if made is None or any(a is not b for a, b in zip(of, last, strict=True)):
            made = make(*of)
            self._kept[name] = (made, *of)
        return made

    def apply(self, window: Window, change: Change) -> None:
        """Writes what a step decided, and records when and how surely.

        A column whose confidence is not a number is left masked and its row marked as broken.
        """
        finite = change.confidence < torch.inf  # neither does NaN pass
        chosen = change.chosen & finite & window.active[:, None]
        self.broken = self.broken | (window.masked & ~finite).any(1)
        columns = window.columns
        tokens = torch.where(chosen, change.tokens, window.tokens)
        self.tokens.scatter_(1, columns, tokens)
        if self.keep_history:
            written = Written(columns, window.tokens, tokens, self.step.clone(), self.prompts)
            self.history.append(written)
        step = self.step.to(torch.int32)[:, None].expand_as(chosen)
        step = step.masked_fill(change.tokens == self.layout.mask_token_id, NEVER)
        record(self.commit_step, columns, chosen, step)
        record(self.commit_confidence, columns, chosen, change.confidence.float())
        if change.length is not None:
            self._shorten(torch.where(window.active, change.length, self.length))
        if change.block_end is not None:
            self.block_end = torch.where(window.active, change.block_end, self.block_end)
        if change.hold is not None:
            self.held = torch.where(window.active, change.hold, self.held)
        self.clean = self.block_start
        self.step += window.active
        self.row_forwards += window.active
        self.block_step += torch.where(window.active, change.num_steps, 0)

    def copy(self) -> Canvas:
        """Returns a canvas of its own that can be decoded further without this one."""
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.clone())
        other._kept = {}
        return other

    def adopt(self, winner: Tensor, active: Tensor) -> None:
        """Writes what the best variant (B,) of each active row (B,) has over the canvas."""
        assert self.branches is not None
        branches, at = self.branches, winner[:, None]
        column, confidence = branches.columns.gather(1, at), branches.confidence.gather(1, at)
        compared = branches.needed & active
        chosen = (column >= 0) & compared[:, None]
        column = column.clamp(min=0)
        held = self.tokens.gather(1, column)
        tokens = torch.where(chosen, branches.tokens.gather(1, at), held)
        self.tokens.scatter_(1, column, tokens)
        if self.keep_history:
            written = Written(column, held, tokens, self.step.clone(), self.prompts)
            self.history.append(written)
        record(self.commit_step, column, chosen, self.step.to(torch.int32)[:, None])
        record(self.commit_confidence, column, chosen, confidence.float())
        self.row_forwards += torch.where(compared, branches.count - 1, 0)

    def _shorten(self, length: Tensor) -> None:
        """Cuts rows off at a column; what was there becomes padding."""
        self.length = torch.minimum(self.length, length)
        cut = (self.numbers >= self.length[:, None]) & ~self.fixed
        self.tokens.masked_fill_(cut, self.layout.fill_token_id)
        self.commit_step.masked_fill_(cut, NEVER)
        self.commit_confidence.masked_fill_(cut, float("nan"))
        self.fixed = self.fixed | cut

    @property
    def ended(self) -> Tensor:
        """Which columns hold a generated end token, (B, C) bool."""
        return torch.isin(self.tokens, self.ends) & ~self.fixed


def record(history: Tensor, columns: Tensor, commit: Tensor, value: Tensor) -> None:
    """Writes value (B, n) into history (B, C) at columns (B, n), where commit (B, n) says so."""
    history.scatter_(1, columns, torch.where(commit, value, history.gather(1, columns)))
