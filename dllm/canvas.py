"""The state of B sequences while they are denoised."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dllm.branches import Branches
from dllm.plan import StepPlan
from dllm.seen import Seen
from dllm.verifier_drafts import Drafts

NEVER = -1  # commit_step of a column that the model did not commit

# What an end token does: nothing; end its row once all before it is there; the same, and nothing
# after it is committed; end its row once its block is full; cut the row at once.
AtEnd = Literal["ignore", "stop", "skip", "block", "truncate"]


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
    num_slots: int  # the most of any row
    window_length: int  # columns from a block's start that a step may commit
    region_length: int = 0  # columns of the whole generated region, if a scheduler sees it all
    num_shadows: int = 0  # store slots for columns that are fed twice
    can_shorten: bool = False  # a scheduler may cut rows off
    whole_block: bool = False  # a scheduler reads the logits of committed columns of the block

    @property
    def ragged(self) -> bool:
        """Whether rows differ in length, so that attention needs a key mask."""
        return self.can_shorten or len(set(self.lengths)) > 1

    @property
    def width(self) -> int:
        """W: the columns that a step looks at."""
        return self.region_length or self.window_length

    @property
    def num_stored(self) -> int:
        """C: columns of the canvas, with spare ones in which any window ends."""
        return self.num_columns + max(self.width, self.window_length) + self.num_shadows


@dataclass(frozen=True)
class Window:
    """The columns of each row that a step looks at."""

    columns: Tensor  # (B, W) int64
    tokens: Tensor  # (B, W) int64
    masked: Tensor  # (B, W) bool: may be committed now
    block: Tensor  # (B, W) bool: belongs to the row's block
    known: Tensor  # (B, W) bool: the pass gives its logits
    active: Tensor  # (B,) bool: the block has masks, or the row is held at it


@dataclass(frozen=True)
class Change:
    """What one step writes into the windows."""

    chosen: Tensor  # (B, W) bool
    tokens: Tensor  # (B, W) int64, the mask token where a column is opened again
    confidence: Tensor  # (B, W) float
    num_steps: Tensor | int = 1  # (B,) int64 schedule steps that it stands for
    hold: Tensor | None = None  # (B,) bool: the row stays at its block though it is full
    length: Tensor | None = None  # (B,) int64 column at which the row is cut off
    block_end: Tensor | None = None  # (B,) int64 column at which the block ends


@dataclass(frozen=True)
class Written:
    """The windows of one pass before and after it."""

    columns: Tensor  # (B, W) int64
    before: Tensor  # (B, W) int64 tokens
    after: Tensor  # (B, W) int64
    step: Tensor  # (B,) int64 forwards of each row before this one
    prompts: Tensor  # (B,) int64 whose windows they are


@dataclass(frozen=True)
class Status:
    """What the host must know between two steps, read in one transfer."""

    unfinished: bool  # some row still has masks
    entered: bool  # some row stands at a block that has not been forwarded yet
    broken: bool  # some row got logits that are not numbers
    remaining: int  # the most columns that any unfinished row has from its block's start on
    length: int  # the most columns of any unfinished row
    reach: int  # the last column, exclusive, of any unfinished row's block
    num_fed: int  # the most columns that any row feeds in the next pass, 0 if the cache names none
    branching: bool  # some row has variants to compare
    block_forwards: int  # the most forwards that any unfinished row took at its block
    num_variants: int = 1  # the most canvases that any unfinished row has drafted, itself included
    num_forwards: int = 0  # the most forwards that any unfinished row took
    num_open: int = 0  # the most masked columns that the window of any unfinished row has
    finished: tuple[bool, ...] = ()  # which rows are

    def joined(self, rows: Sequence[Status]) -> Status:
        """Returns the status of this canvas once other rows are in it; who is finished stays."""
        every = [self, *rows]
        told = {name: max(vars(one)[name] for one in every) for name in vars(self)}
        return Status(**{**told, "finished": self.finished})


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
        self._record(self.commit_step, columns, chosen, step)
        self._record(self.commit_confidence, columns, chosen, change.confidence.float())
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
        self._record(self.commit_step, column, chosen, self.step.to(torch.int32)[:, None])
        self._record(self.commit_confidence, column, chosen, confidence.float())
        self.row_forwards += torch.where(compared, branches.count - 1, 0)

    def end_rows(self, at_eos: AtEnd) -> Tensor:
        """Finishes complete rows; returns which columns wait for a token, (B, C) bool."""
        if at_eos == "truncate":
            self._truncate()
        masked = self.masked
        if at_eos != "ignore":
            complete = self._fill_complete(masked, whole_block=at_eos == "block")
            masked, self.held = masked & ~complete, self.held & ~complete[:, 0]
        self.finished = self.finished | ~(masked.any(1) | self.held)
        return masked

    def settle(self, lockstep: bool, at_eos: AtEnd, feeds: Feeds | None = None) -> Status:
        """Finishes complete rows, moves rows to their next block and reports, in one transfer.

        `lockstep` holds every row at its block until all rows have filled theirs. `feeds` says
        which columns (B, C) the next pass feeds.
        """
        masked = self.end_rows(at_eos)
        first = masked.int().argmax(1)
        moving = (first >= self.block_end) & ~self.finished & ~self.held
        if lockstep:
            moving = moving & (moving | self.finished).all()
        self._enter(moving, first, masked)
        return self.status(feeds)

    def status(self, feeds: Feeds | None) -> Status:
        """Returns what the host must know of the canvas: the one transfer of a step."""
        names, figures = self._figures(feeds)
        told = torch.cat([figures.amax(1), self.finished]).tolist()
        return _status(names, told[: len(names)], told[len(names) :])

    def statuses(self, feeds: Feeds | None) -> list[Status]:
        """Returns what the host must know of each row by itself, in one transfer."""
        names, figures = self._figures(feeds)
        told = torch.cat([figures, self.finished[None]]).T.tolist()
        return [_status(names, row[:-1], row[-1:]) for row in told]

    def _figures(self, feeds: Feeds | None) -> tuple[list[str], Tensor]:
        """Returns the names of a status' figures, and each row's, (n, B) int64.

        Few operations on stacked figures: this is done in every step, on tensors of a few bytes.
        """
        running = ~self.finished
        flags = {
            "unfinished": running,
            "entered": (self.block_step == 0) & running,
            "broken": self.broken,
        }
        sizes = {  # of rows that are not finished
            "remaining": self.length - self.block_start,
            "length": self.length,
            "reach": torch.minimum(self.length, self.block_end),
            "block_forwards": self.step - self.entry_step,
            "num_forwards": self.step,
            "num_open": self.open_columns().sum(1),
        }
        if self.branches is not None:
            flags["branching"] = self.branches.needed & running
        if feeds is not None:
            sizes["num_fed"] = feeds(self).sum(1)
        if self.drafts is not None:
            sizes["num_variants"] = self.drafts.count
        figures = [torch.stack(list(flags.values())), torch.stack(list(sizes.values())) * running]
        return [*flags, *sizes], torch.cat(figures)

    def _enter(self, moving: Tensor, first: Tensor, masked: Tensor) -> None:
        """Moves rows to the block of their first mask, counted in whole blocks from the last."""
        block = self.layout.block_length
        skipped = (first - self.block_end).div(block, rounding_mode="floor") * block
        self.block_start = torch.where(moving, self.block_end + skipped, self.block_start)
        self.block_end = torch.where(moving, self.block_start + block, self.block_end)
        self.block_step = torch.where(moving, 0, self.block_step)
        self.fresh = self.fresh | moving
        if self.layout.can_shorten:
            self.entry_length = torch.where(moving, self.length, self.entry_length)
        self.entry_step = torch.where(moving, self.step, self.entry_step)
        start = self.block_start[:, None]
        entry = self.step.to(torch.int32)[:, None]
        self._record(self.block_entry, start, moving[:, None], entry)
        count = masked.gather(1, start + self.numbers[:block]).sum(1)
        self.block_masks = torch.where(moving, count, self.block_masks)

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

    def _truncate(self) -> None:
        """Overwrites everything after the first end token of each row."""
        ended = self.ended.int()
        after = (ended.cumsum(1) > ended) & ~self.fixed
        self.tokens.masked_fill_(after, self.layout.fill_token_id)
        self.commit_step.masked_fill_(after, NEVER)
        self.commit_confidence.masked_fill_(after, float("nan"))

    def _fill_complete(self, masked: Tensor, whole_block: bool) -> Tensor:
        """Fills every row that is complete up to its first end token; (B, 1) bool, such rows.

        With `whole_block`, a row is complete when its block is full and it has an end token.
        """
        if whole_block:
            passed = self.numbers < self.block_end[:, None]
            full = ~(masked & passed).any(1, keepdim=True)
            complete = (self.ended & passed).any(1, keepdim=True) & full
        else:
            pending = masked.int().cumsum(1) > 0
            complete = (self.ended & ~pending).any(1, keepdim=True)
        self.tokens.masked_fill_(masked & complete, self.layout.fill_token_id)
        return complete

    @staticmethod
    def _record(history: Tensor, columns: Tensor, commit: Tensor, value: Tensor) -> None:
        history.scatter_(1, columns, torch.where(commit, value, history.gather(1, columns)))


def _status(names: Sequence[str], told: Sequence[int], finished: Sequence[int]) -> Status:
    known: dict[str, Any] = {"num_fed": 0, **dict(zip(names, told, strict=True))}
    known |= {name: bool(known.get(name)) for name in _FLAGS}
    known["num_variants"] = max(known.get("num_variants", 1), 1)  # none is drafted where all ended
    return Status(**known, finished=tuple(map(bool, finished)))


_FLAGS = ("unfinished", "entered", "broken", "branching")


Feeds = Callable[[Canvas], Tensor]  # which columns (B, C) bool a pass feeds


def new_canvas(
    layout: Layout,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[Sequence[int]],
    device: torch.device,
) -> Canvas:
    """Returns a canvas of prompts followed by slots; a slot that holds the mask id is open."""
    width = layout.num_stored
    rows = [[*prompt, *slot] for prompt, slot in zip(prompts, slots, strict=True)]
    padded = [row + [layout.fill_token_id] * (width - len(row)) for row in rows]
    tokens = torch.tensor(padded, dtype=torch.int64)
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    generated = torch.arange(width) >= prompt_length[:, None]
    fixed = ~(generated & (tokens == layout.mask_token_id))
    return Canvas(layout, tokens.to(device), fixed.to(device), prompt_length.to(device))
