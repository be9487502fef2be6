"""Several languages in one row, each about columns of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.decoding.languages.held import HeldRows, HeldWindow
from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from dllm.state.window import Decision, Window


@dataclass(frozen=True)
class Several:
    """Languages that share no column of any row: asked one after the other, in any order."""

    parts: tuple[HeldRows, ...]

    def enter(self, canvas: Canvas, progress: Progress, prompts: tuple[int, ...]) -> None:
        """Lets each read what changed."""
        for part in self.parts:
            part.enter(canvas, progress, prompts)

    def holds(self, prompt: int) -> bool:
        """Whether the row of a prompt must be in one of them."""
        return any(part.holds(prompt) for part in self.parts)

    def adopt(self, prompt: int, alone: Several) -> None:
        """Takes the languages of the only row of another call, for a prompt that enters late."""
        for part, other in zip(self.parts, alone.parts, strict=True):
            part.adopt(prompt, other)

    def sets(self, canvas: Canvas, spare: bool = False) -> HeldWindow | None:
        """Returns what each column may hold by all of them."""
        found = [part.sets(canvas, spare) for part in self.parts]
        known = [one for one in found if one is not None]
        return _All(known) if known else None


@dataclass(frozen=True)
class _All:
    """The sets of several languages."""

    parts: Sequence[HeldWindow]

    def held(
        self, logits: Tensor, places: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        for part in self.parts:
            logits = part.held(logits, places, dtype)
        return logits

    def chosen(self, candidates: Candidates, logits: Tensor) -> Candidates:
        for part in self.parts:
            candidates = part.chosen(candidates, logits)
        return candidates

    def settle(
        self, window: Window, decision: Decision, candidates: Candidates
    ) -> tuple[Window, Decision]:
        compelled = decision.compelled
        for part in self.parts:
            window, decision = part.settle(window, decision, candidates)
            more = decision.compelled
            if compelled is not None and more is not None:
                decision = replace(decision, compelled=compelled + more)
            compelled = decision.compelled
        return window, decision
