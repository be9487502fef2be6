"""What a loop asks of the languages that rows must be in, however they are held to them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dllm.state.candidates import Candidates
from dllm.state.canvas import Canvas
from dllm.state.progress import Progress
from dllm.state.window import Decision, Window


class HeldWindow(Protocol):
    """What the columns of a window may hold in one step."""

    def held(
        self, logits: Tensor, places: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Returns logits (B, w, V) in a dtype, with -inf for what their columns may not hold.

        `places` (B, w) int64 are the columns that they are of, by place in the window; None: all.
        """
        ...

    def chosen(self, candidates: Candidates, logits: Tensor) -> Candidates:
        """Returns candidates with other tokens where texts as a whole decide on them."""
        ...

    def settle(
        self, window: Window, decision: Decision, candidates: Candidates
    ) -> tuple[Window, Decision]:
        """Returns a decision of which everything may be written together."""
        ...


class HeldRows(Protocol):
    """The languages of all rows of a call."""

    def enter(self, canvas: Canvas, progress: Progress, prompts: tuple[int, ...]) -> None:
        """Notes which prompts are at the seats, and rows that entered a block."""
        ...

    def holds(self, prompt: int) -> bool:
        """Whether the row of a prompt must be in a language."""
        ...

    def adopt(self, prompt: int, alone: Any) -> None:
        """Takes the language of the only row of another call, for a prompt that enters late."""
        ...

    def sets(self, canvas: Canvas, spare: bool = False) -> HeldWindow | None:
        """Returns what the columns of the window may hold; None: no row has a language.

        Where `spare`, nobody else reads the logits that will be held to it.
        """
        ...
