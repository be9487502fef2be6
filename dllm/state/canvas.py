"""The state of B sequences while they are denoised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.carried import State
from dllm.state.noise import Noise
from dllm.state.plan import StepPlan
from dllm.state.variants import Drafts, Variants
from dllm.state.window import (
    OF_ROWS,
    Layout,
    View,
    Window,
    Written,
)

_NOTHING: tuple[Any, tuple[Any, ...]] = (None, ())  # what was kept before the first time

NEVER = -1  # commit_step of a column that the model did not commit


class Canvas:
    """The tokens of B left-aligned rows, their blocks and their history.

    Column = position: the prompt of row b is in [0, prompt_length[b]), its slots follow, padding
    is at the right end. Spare columns after the longest row let every row's window have W
    distinct columns; they are never attended to. Tensors keep their shape and place.
    """

    planned: Tensor | None = None  # (B, n) int64 columns that the next step commits
    variants: Variants | None = None  # of each row, which the next pass compares
    drafts: Drafts | None = None  # of a verifier, with its count of forwards
    scheduler_state: State | None = None  # None: the scheduler has not begun
    scheduler_start: State  # a row of its state before the first step
    cache_state: Any = None  # what the cache noted of earlier passes
    gap: Tensor | None = None  # (B,) int64 columns behind the prompt that a growing gap uses
    room: Tensor | None = None  # (B,) int64 columns that it has
    writes = 0  # of tokens, which are written in place

    def __init__(self, layout: Layout, tokens: Tensor, fixed: Tensor, prompt_length: Tensor):
        self.layout = layout
        self.tokens = tokens  # (B, C) int64, C = layout.num_stored
        self.fixed = fixed  # (B, C) bool: prompt, padding and infill text, never changed
        self.given = fixed  # (B, C) bool: the same before anything was cut off
        self.prompt_length = prompt_length  # (B,) int64
        self.prompts = torch.arange(len(tokens), device=tokens.device)  # (B,) int64 whose rows
        # (B,) int64 tokens of each row, and of them those that the output keeps
        lengths = torch.tensor([layout.lengths, layout.kept], device=tokens.device)
        self.length, self.kept_length = lengths.unbind()
        self.full_length = self.length  # (B,) before anything was cut off
        self.ends = torch.tensor(layout.eos_token_ids, dtype=torch.int64, device=tokens.device)
        self.numbers = torch.arange(tokens.shape[1], device=tokens.device)  # (C,) int64 columns
        # (B,) int64: where blocks are counted from, the row's block begins, and the next one
        first, start, end = (prompt_length.clone() for _ in range(3))
        self.first_block, self.block_start, self.block_end = first, start, end
        self.block_masks = torch.zeros_like(prompt_length)  # (B,) masks when the block began
        self.entry_length = self.length.clone()  # (B,) int64 length when the block began
        self.entry_step = torch.zeros_like(prompt_length)  # (B,) forwards before the block began
        # (B,) int64: columns before it held their final tokens in the last pass
        self.clean = torch.zeros_like(prompt_length)
        self.memo: dict[str, tuple[Any, ...]] = {}  # what was made, and of what
        self.num_slots = self.masked.sum(1)  # (B,) int64 masks before the first step
        self.step = torch.zeros_like(prompt_length)  # (B,) forwards the row took part in
        # (B,) forwards of its variants and drafts besides; commits that were the only choice
        self.further_forwards, self.compelled = (torch.zeros_like(self.step) for _ in range(2))
        self.tally = torch.zeros(*self.step.shape, 3).to(prompt_length)  # (B, 3), of `Decision`
        self.block_step = torch.zeros_like(prompt_length)  # (B,) schedule steps of this block
        self.finished = torch.zeros_like(prompt_length, dtype=torch.bool)  # (B,)
        self.fresh = torch.ones_like(self.finished)  # (B,) no scheduler was asked in this block
        # (B,) got logits that are no numbers; stays at its block though it is full
        self.broken, self.held = (torch.zeros_like(self.finished) for _ in range(2))
        self.commit_step = torch.full_like(tokens, NEVER, dtype=torch.int32)  # (B, C)
        self.commit_confidence = torch.full_like(tokens, float("nan"), dtype=torch.float32)
        # (B, C) int32: forwards before a block that begins at the column; NEVER: none was entered
        self.block_entry = torch.full_like(self.commit_step, NEVER)
        self.history: list[Written] = []

    @property
    def hidden(self) -> Tensor:
        """Which columns of a gap are not in use, (B, C) bool; nothing sees them."""
        if self.gap is None or self.room is None:
            return torch.zeros_like(self.fixed)
        slot = self.numbers - self.prompt_length[:, None]
        return (slot >= self.gap[:, None]) & (slot < self.room[:, None])

    def note_pass(self, cache_state: Any) -> None:
        """Takes what a cache noted of a pass."""
        self.cache_state = cache_state

    @property
    def masked(self) -> Tensor:
        """Which columns still wait for a token, (B, C) bool."""
        return self.keep("masked", self._masks, self.writes, self.fixed)

    def _masks(self, _: int, fixed: Tensor) -> Tensor:
        return (self.tokens == self.layout.mask_token_id) > fixed

    @property
    def active(self) -> Tensor:
        """Which rows take part in the next pass, (B,) bool: their block has masks, or is held."""
        return self._active(self.masked & self.block) > self.finished

    def _active(self, waiting: Tensor) -> Tensor:
        return waiting.any(1) | self.held if self.layout.keep_history else waiting.any(1)

    @property
    def block(self) -> Tensor:
        """Which columns belong to the block that each row is at, (B, C) bool."""
        return self.keep("all", between, self.numbers, self.block_start, self.block_end)

    @property
    def row_forwards(self) -> Tensor:
        """How many forwards each row took part in, variants and drafts counted, (B,) int64."""
        return self.step + self.further_forwards

    @property
    def num_blocks(self) -> Tensor:
        """How many blocks each row has, (B,) int64."""
        block, bounds = self.layout.block_length, (self.first_block, self.full_length)
        return self.keep("num_blocks", lambda first, end: -((first - end) // block), *bounds)

    def columns(self) -> Tensor:
        """Returns the columns of each row that a step looks at, (B, W) int64."""
        start = self.first_block if self.layout.region_length else self.block_start
        return self.keep("columns", self._columns_from, start)

    def _columns_from(self, start: Tensor) -> Tensor:
        return start[:, None] + self.numbers[: self.layout.width]

    def window(
        self, plan: StepPlan, active: Tensor | None = None, together: bool = False
    ) -> Window:
        """Returns what a step looks at; `plan` is the pass that it follows.

        `active` (B,) bool are the rows that take part; None: those whose block has masks.
        `together`: the host knows that all do.
        """
        columns, opened = self.columns(), self.open_columns()
        block = self.keep("block", between, columns, self.block_start, self.block_end)
        every = self.keep("every", torch.ones_like, block)
        masked = opened if plan.known is None else opened & plan.known
        if together:
            active = self.keep("everybody", lambda every: every[:, 0], every)
        else:
            active = self._active(opened & block) if active is None else active
            masked = masked & active[:, None]
        masked = masked if plan.eligible is None else masked & plan.eligible
        known = every if plan.known is None else plan.known
        looked_at = (columns, self.tokens.gather(1, columns), masked, block, known, active)
        return Window(*looked_at, plan.forced, plan.kind, together and plan.forced is None)

    def view(self, window: Window, noise: Noise, shadow: Candidates | None = None) -> View:
        """Returns what a scheduler may look at besides the candidates."""
        return View(
            columns=window.columns,
            tokens=window.tokens,
            masked=window.masked,
            block=window.block,
            known=window.known,
            fixed=self.keep("fixed", _gathered, self.fixed, window.columns),
            **{name: getattr(self, name) for name in OF_ROWS},
            layout=self.layout,
            noise=noise,
            state=self.scheduler_state or {},
            shadow=shadow,
        )

    def open_columns(self, start: Tensor | None = None) -> Tensor:
        """Returns which columns of the window may be committed, (B, W) bool.

        Of windows that begin with blocks at `start` (B,); None: at the rows' own.
        """
        if start is None or self.layout.region_length:
            return self.keep("open", self._opened, self.masked, self.columns())
        return self._opened(self.masked, self._columns_from(start))

    def _opened(self, masked: Tensor, columns: Tensor) -> Tensor:
        if self.layout.skip_after_end:
            masked = masked & (self.ended.int().cumsum(1) == 0)
        return masked.gather(1, columns)

    def note_open(self, opened: Tensor) -> None:
        """Takes what `open_columns` of the canvas as it stands would return."""
        self.note("open", opened, self.masked, self.columns())

    def keep(self, name: str, make: Callable[..., Any], *of: Tensor | int) -> Any:
        """Returns `make(*of)`, which is called if any of these is another than the last time.

        Tensors are compared by identity: that is free, and right as long as they are replaced and
        never written in place. `tokens` are written in place; `writes` is what stands for them.
        """
        made, last = self.memo.get(name, _NOTHING)
        for now, then in zip(of, last, strict=False):  # in many places of each step
            if now is not then and not (type(now) is int and now == then):
                break
        else:
            if made is not None:
                return made
        made = make(*of)
        self.memo[name] = (made, of)
        return made

    def note(self, name: str, made: Any, *of: Tensor | int) -> None:
        """Takes what `keep` would make of these."""
        self.memo[name] = (made, of)

    def fed(self, feeds: Callable[[Canvas], Tensor]) -> Tensor:
        """Returns the columns that a pass feeds by `feeds`, (B, C) bool, made once a step."""
        made: Tensor = self.keep("fed", lambda *_: feeds(self), *self._standing())
        return made

    def note_fed(self, fed: Tensor) -> None:
        """Takes what `feeds` returns of the canvas as it stands."""
        self.note("fed", fed, *self._standing())

    def _standing(self) -> tuple[Tensor | int, ...]:
        """Returns what differs wherever a pass may feed other columns."""
        return self.writes, self.finished, self.clean, self.block_start, self.length

    def overwrite(self, columns: Tensor, token: int) -> None:
        """Writes a token into columns (B, C) bool."""
        self.tokens.masked_fill_(columns, token)
        self.writes += 1

    @property
    def ended(self) -> Tensor:
        """Which columns hold a generated end token, (B, C) bool."""
        ended = torch.isin(self.tokens, self.ends) & ~self.fixed
        return ended if self.gap is None else ended & ~self.hidden


def between(columns: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns which columns (B, W) lie between bounds (B,), bool."""
    return (columns >= start[:, None]) & (columns < end[:, None])


def _gathered(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(1, columns)
