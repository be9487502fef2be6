"""The only write of a step: what a scheduler decided, and when and how surely."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.canvas import NEVER, Canvas
from dllm.state.carried import written
from dllm.state.window import Decision, StepEvent, Window, Written


def apply(canvas: Canvas, window: Window, decision: Decision, candidates: Candidates) -> StepEvent:
    """Writes what a step decided, records when and how surely, and returns what it did.

    Rows that the pass forces commit all that they may, unasked. A column whose confidence is
    not a number is left masked and its row marked as broken.
    """
    chosen, asked = decision.commit, window.active
    tokens = candidates.token if decision.tokens is None else decision.tokens
    if window.forced is not None:
        forced, asked = window.forced[:, None], asked > window.forced
        chosen = torch.where(forced, window.masked, chosen)
        tokens = torch.where(forced, candidates.token, tokens)
    if decision.edit is not None:
        chosen = chosen | (decision.edit & asked[:, None])
    if decision.remask is not None:
        remask = decision.remask & asked[:, None]
        chosen, tokens = chosen | remask, tokens.masked_fill(remask, canvas.layout.mask_token_id)
    after = _write(canvas, window, chosen, tokens, candidates.confidence)
    _move(canvas, window, decision, asked)
    _carry(canvas, window, decision, asked)
    return StepEvent(
        kind=window.kind,
        columns=window.columns,
        before=window.tokens,
        tokens=after if decision.length is None else canvas.tokens.gather(1, window.columns),
        drafts=candidates.token,
        confidence=candidates.confidence,
        mask_token_id=canvas.layout.mask_token_id,
    )


def _write(
    canvas: Canvas, window: Window, chosen: Tensor, tokens: Tensor, confidence: Tensor
) -> Tensor:
    """Writes the chosen tokens where confidence is a number; returns the windows after it."""
    finite = confidence < torch.inf  # neither does NaN pass
    chosen = chosen & finite
    canvas.broken = canvas.broken | (window.masked > finite).any(1)
    columns, after = window.columns, torch.where(chosen, tokens, window.tokens)
    canvas.tokens.scatter_(1, columns, after)
    canvas.writes += 1
    step = canvas.step.int()[:, None].expand_as(chosen)
    if canvas.layout.keep_history:
        written = Written(columns, window.tokens, after, canvas.step.clone(), canvas.prompts)
        canvas.history.append(written)
        step = step.masked_fill(tokens == canvas.layout.mask_token_id, NEVER)
    # What is not chosen goes to the last spare column, which no window reaches.
    at = torch.where(chosen, columns, canvas.tokens.shape[1] - 1)
    canvas.commit_step.scatter_(1, at, step)
    canvas.commit_confidence.scatter_(1, at, confidence.float())
    return after


def _move(canvas: Canvas, window: Window, decision: Decision, asked: Tensor) -> None:
    """Moves the bounds and clocks of rows; `asked` (B,) bool are the decision's."""
    active = window.active
    if decision.length is not None:
        _shorten(canvas, torch.where(asked, decision.length, canvas.length))
    asking = {"block_end": decision.block_end, "gap": decision.gap, "held": decision.hold}
    for name, value in asking.items():
        if value is not None:
            setattr(canvas, name, torch.where(asked, value, getattr(canvas, name)))
    if window.together:
        canvas.fresh = canvas.keep("nobody", torch.zeros_like, active)
    else:
        canvas.fresh = canvas.fresh > asked
    canvas.clean = canvas.block_start
    canvas.step += active
    if decision.num_steps is not None:
        active = torch.where(asked, decision.num_steps, 1) * active
    canvas.block_step += active


def _carry(canvas: Canvas, window: Window, decision: Decision, asked: Tensor) -> None:
    """Takes over what a decision carries to the next step, or adds to counts."""
    if decision.planned is not None:
        canvas.planned = decision.planned
    if decision.variants is not None:
        before = canvas.variants or decision.variants
        canvas.variants = before.merge(decision.variants, window.active)
    if decision.state is not None or decision.replaced is not None:
        took = None if window.together else asked
        old, new = canvas.scheduler_state or {}, decision.state
        canvas.scheduler_state = written(old, new, decision.replaced, took)
    for name in ("compelled", "tally"):
        if (more := getattr(decision, name)) is not None:
            setattr(canvas, name, getattr(canvas, name) + more)


def _shorten(canvas: Canvas, length: Tensor) -> None:
    """Cuts rows off at a column; what was there becomes padding."""
    canvas.length = torch.minimum(canvas.length, length)
    cut = (canvas.numbers >= canvas.length[:, None]) & ~canvas.fixed
    canvas.overwrite(cut, canvas.layout.fill_token_id)
    canvas.commit_step.masked_fill_(cut, NEVER)
    canvas.commit_confidence.masked_fill_(cut, float("nan"))
    canvas.fixed = canvas.fixed | cut
