"""From a scheduler's decision to what is written into the canvas."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.schedulers import Decision
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.window import Change, Window


def overruled(
    decision: Decision, rows: Tensor, window: Window, canvas: Canvas, candidates: Candidates
) -> Decision:
    """Returns the decision in which `rows` (B,) bool commit all that they may, and nothing else."""

    def kept(value: Tensor | None, instead: Tensor | int) -> Tensor | None:
        if value is None:
            return None
        return torch.where(rows[:, None] if value.dim() == 2 else rows, instead, value)

    return Decision(
        commit=torch.where(rows[:, None], window.masked, decision.commit),
        tokens=kept(decision.tokens, candidates.token),
        num_steps=kept(decision.num_steps, 1),
        remask=kept(decision.remask, False),
        edit=kept(decision.edit, False),
        hold=kept(decision.hold, canvas.held),
        length=kept(decision.length, canvas.length),
        block_end=kept(decision.block_end, canvas.block_end),
        branches=decision.branches,
        announced=decision.announced,
        state=decision.state,
    )


def change_of(decision: Decision, candidates: Candidates, mask_token_id: int) -> Change:
    """Returns a decision as what is written: commits, edits, and masks for what is re-masked."""
    tokens = candidates.token if decision.tokens is None else decision.tokens
    chosen = decision.commit
    if decision.edit is not None:
        chosen = chosen | decision.edit
    if decision.remask is not None:
        chosen = chosen | decision.remask
        tokens = tokens.masked_fill(decision.remask, mask_token_id)
    return Change(
        chosen=chosen,
        tokens=tokens,
        confidence=candidates.confidence,
        num_steps=1 if decision.num_steps is None else decision.num_steps,
        hold=decision.hold,
        length=decision.length,
        block_end=decision.block_end,
    )
