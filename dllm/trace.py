"""The history of a generation: when each token was committed and how sure the model was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dllm.canvas import NEVER


@dataclass(frozen=True)
class Trace:
    """Enough to replay a generation step by step; all tensors on the CPU."""

    tokens: Tensor  # (B, L) int64 final tokens
    commit_step: Tensor  # (B, L) int32 forward of the row that committed it, -1: none did
    confidence: Tensor  # (B, L) float32 at that moment, NaN where none did
    prompt_length: Tensor  # (B,) int64
    mask_token_id: int

    def num_steps(self, row: int) -> int:
        """Returns the forwards of a row until its last commit."""
        return int(self.commit_step[row].max()) + 1

    def commits(self, row: int) -> list[list[tuple[int, int]]]:
        """Returns, for each forward of a row, the (column, token) pairs that it committed."""
        steps: list[list[tuple[int, int]]] = [[] for _ in range(self.num_steps(row))]
        tokens = self.tokens[row].tolist()
        for column, step in enumerate(self.commit_step[row].tolist()):
            if step != NEVER:
                steps[step].append((column, tokens[column]))
        return steps

    def replay(self, row: int) -> Iterator[list[int]]:
        """Yields a row's canvas (L token ids) before the first forward and after each."""
        final, steps = self.tokens[row].tolist(), self.commit_step[row].tolist()
        for done in range(self.num_steps(row) + 1):
            yield [
                token if step < done else self.mask_token_id
                for token, step in zip(final, steps, strict=True)
            ]

    def to_dict(self) -> dict[str, Any]:
        """Returns the trace as JSON-ready lists."""
        return {
            "tokens": self.tokens.tolist(),
            "commit_step": self.commit_step.tolist(),
            "confidence": [
                [None if value != value else round(value, 6) for value in row]
                for row in self.confidence.tolist()
            ],
            "prompt_length": self.prompt_length.tolist(),
            "mask_token_id": self.mask_token_id,
        }
