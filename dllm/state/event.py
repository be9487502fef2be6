"""What one step did, as the caller of a stream sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.plan import PassKind, StepPlan
from dllm.state.window import Window


@dataclass(frozen=True)
class StepEvent:
    """What one step did to the window of each row."""

    kind: PassKind
    columns: Tensor  # (B, W) int64
    tokens: Tensor  # (B, W) int64 after the step
    committed: Tensor  # (B, W) bool: written by this step, edits included
    remasked: Tensor  # (B, W) bool: masked again by this step
    drafts: Tensor  # (B, W) int64 what the model would put where a mask is left
    confidence: Tensor  # (B, W) float of the drafts
    prompts: tuple[int, ...] = ()  # whose row each place of the batch holds
    finished: tuple[int, ...] = ()  # the prompts of rows that this step ended


def event_of(plan: StepPlan, canvas: Canvas, window: Window, candidates: Candidates) -> StepEvent:
    """Returns what a step did that has just been written into the canvas."""
    tokens = canvas.tokens.gather(1, window.columns)
    changed, masked = tokens != window.tokens, tokens == canvas.layout.mask_token_id
    return StepEvent(
        kind=plan.kind,
        columns=window.columns,
        tokens=tokens,
        committed=changed & ~masked,
        remasked=changed & masked,
        drafts=candidates.token,
        confidence=candidates.confidence,
    )
