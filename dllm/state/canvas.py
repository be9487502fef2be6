"""The state of B sequences while they are denoised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.noise import Noise
from dllm.state.plan import StepPlan
from dllm.state.variants import Drafts, Variants
from dllm.state.window import (
    OF_ROWS,
    Decision,
    Layout,
    State,
    StepEvent,
    View,
    Window,
    Written,
    merged,
)

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
        self.num_slots = self.masked.sum(1)  # (B,) int64 masks before the first step
        self.step = torch.zeros_like(prompt_length)  # (B,) forwards the row took part in
        # (B,) the same, variants counted; commits that were the only choice
        self.row_forwards, self.compelled = (torch.zeros_like(prompt_length) for _ in range(2))
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
        self.memo: dict[str, tuple[Tensor, ...]] = {}  # what was made of tensors, and of which

    def count_blocks_from_zero(self) -> None:
        """Aligns blocks to column 0, as block-causal models were trained."""
        block = self.layout.block_length
        start = self.prompt_length.div(block, rounding_mode="floor") * block
        self.first_block, self.block_start, self.block_end = start, start.clone(), start.clone()

    @property
    def hidden(self) -> Tensor:
        """Which columns of a gap are not in use, (B, C) bool; nothing sees them."""
        if self.gap is None or self.room is None:
            return torch.zeros_like(self.fixed)
        slot = self.numbers - self.prompt_length[:, None]
        return (slot >= self.gap[:, None]) & (slot < self.room[:, None])

    def start_scheduler(self, state: State) -> None:
        """Takes a scheduler's state before its first step; at the start all rows are alike."""
        self.scheduler_state = state
        self.scheduler_start = {name: value[:1].clone() for name, value in state.items()}

    def start_drafts(self, drafts: Drafts) -> None:
        """Takes a verifier's drafts, of which there are none yet."""
        self.drafts = drafts

    def note_pass(self, cache_state: Any) -> None:
        """Takes what a cache noted of a pass."""
        self.cache_state = cache_state

    def read_prompt(self, end: Tensor) -> None:
        """Notes that a pass has fed the prompts up to columns `end` (B,)."""
        self.clean = torch.maximum(self.clean, torch.minimum(self.first_block, end))

    def recall_prompt(self, length: Tensor) -> None:
        """Notes that the store has the final keys of columns before `length` (B,)."""
        self.clean = length.to(self.clean.device)

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
        after = self.numbers >= self.block_start[:, None]
        return after & (self.numbers < self.block_end[:, None])

    @property
    def num_blocks(self) -> Tensor:
        """How many blocks each row has, (B,) int64."""
        block, bounds = self.layout.block_length, (self.first_block, self.full_length)
        return self.keep("num_blocks", lambda first, end: -((first - end) // block), *bounds)

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
        tokens = self.tokens.gather(1, columns)
        known = None if plan is None else plan.known
        known = torch.ones_like(masked) if known is None else known
        masked = masked & known & active[:, None]
        if plan is None:
            return Window(columns, tokens, masked, block, known, active)
        if plan.eligible is not None:
            masked = masked & plan.eligible
        return Window(columns, tokens, masked, block, known, active, plan.forced, plan.kind)

    def view(self, window: Window, noise: Noise, shadow: Candidates | None = None) -> View:
        """Returns what a scheduler may look at besides the candidates."""
        return View(
            columns=window.columns,
            tokens=window.tokens,
            masked=window.masked,
            block=window.block,
            known=window.known,
            fixed=self.fixed.gather(1, window.columns),
            **{name: getattr(self, name) for name in OF_ROWS},
            layout=self.layout,
            noise=noise,
            state=self.scheduler_state or {},
            shadow=shadow,
        )

    def open_columns(self) -> Tensor:
        """Returns which columns of the window may be committed, (B, W) bool."""
        masked = self.masked
        if self.layout.skip_after_end:
            masked = masked & (self.ended.int().cumsum(1) == 0)
        return masked.gather(1, self.columns())

    def keep(self, name: str, make: Callable[..., Tensor], *of: Tensor) -> Tensor:
        """Returns what is made of tensors that are replaced but never written in place.

        It is made anew when one of them is another tensor than the last time.
        """
        made, *last = self.memo.get(name, (None,))
        if made is None or any(a is not b for a, b in zip(of, last, strict=True)):
            made = make(*of)
            self.memo[name] = (made, *of)
        return made

    def apply(self, window: Window, decision: Decision, candidates: Candidates) -> StepEvent:
        """Writes what a step decided, records when and how surely, and returns what it did.

        Rows that the pass forces commit all that they may, unasked. A column whose confidence is
        not a number is left masked and its row marked as broken.
        """
        commit, tokens, asked = decision.commit, decision.tokens, window.active
        if window.forced is not None:
            asked = asked & ~window.forced
            commit = torch.where(window.forced[:, None], window.masked, commit)
        tokens = candidates.token if tokens is None else self._of(window, tokens, candidates.token)
        chosen = commit
        if decision.edit is not None:
            chosen = chosen | self._of(window, decision.edit, False)
        if decision.remask is not None:
            remask = self._of(window, decision.remask, False)
            chosen, tokens = chosen | remask, tokens.masked_fill(remask, self.layout.mask_token_id)
        self._write(window, chosen, tokens, candidates.confidence)
        self._move(window, decision, asked)
        after = self.tokens.gather(1, window.columns)
        changed, masked = after != window.tokens, after == self.layout.mask_token_id
        return StepEvent(
            kind=window.kind,
            columns=window.columns,
            tokens=after,
            committed=changed & ~masked,
            remasked=changed & masked,
            drafts=candidates.token,
            confidence=candidates.confidence,
        )

    def _write(self, window: Window, chosen: Tensor, tokens: Tensor, confidence: Tensor) -> None:
        """Writes the chosen tokens where confidence is a number."""
        finite = confidence < torch.inf  # neither does NaN pass
        chosen = chosen & finite & window.active[:, None]
        self.broken = self.broken | (window.masked & ~finite).any(1)
        columns, after = window.columns, torch.where(chosen, tokens, window.tokens)
        self.tokens.scatter_(1, columns, after)
        if self.layout.keep_history:
            written = Written(columns, window.tokens, after, self.step.clone(), self.prompts)
            self.history.append(written)
        step = self.step.to(torch.int32)[:, None].expand_as(chosen)
        step = step.masked_fill(tokens == self.layout.mask_token_id, NEVER)
        record(self.commit_step, columns, chosen, step)
        record(self.commit_confidence, columns, chosen, confidence.float())

    def _move(self, window: Window, decision: Decision, asked: Tensor) -> None:
        """Takes over what a decision says besides tokens; `asked` (B,) bool are its rows."""
        active = window.active
        if decision.length is not None:
            self._shorten(torch.where(asked, decision.length, self.length))
        if decision.block_end is not None:
            self.block_end = torch.where(asked, decision.block_end, self.block_end)
        if decision.gap is not None and self.gap is not None:
            self.gap = torch.where(asked, decision.gap, self.gap)
        if decision.hold is not None:
            self.held = torch.where(asked, decision.hold, self.held)
        if decision.planned is not None:
            self.planned = decision.planned
        if decision.variants is not None:
            before = self.variants or decision.variants
            self.variants = before.merge(decision.variants, active)
        if decision.state is not None:
            self.scheduler_state = merged(self.scheduler_state or {}, decision.state, asked)
        for name in ("compelled", "tally"):
            if (more := getattr(decision, name)) is not None:
                setattr(self, name, getattr(self, name) + more)
        self.fresh = self.fresh & ~asked
        self.clean = self.block_start
        self.step += active
        self.row_forwards += active
        steps = 1 if decision.num_steps is None else torch.where(asked, decision.num_steps, 1)
        self.block_step += steps * active

    def _of(self, window: Window, value: Tensor, instead: Tensor | bool) -> Tensor:
        """Returns a decision's value (B, W) of the rows that were asked, else `instead`."""
        if window.forced is None:
            return value
        return torch.where(window.forced[:, None], instead, value)

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
        ended = torch.isin(self.tokens, self.ends) & ~self.fixed
        return ended if self.gap is None else ended & ~self.hidden


def record(history: Tensor, columns: Tensor, commit: Tensor, value: Tensor) -> None:
    """Writes value (B, n) into history (B, C) at columns (B, n), where commit (B, n) says so."""
    history.scatter_(1, columns, torch.where(commit, value, history.gather(1, columns)))
