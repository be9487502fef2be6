"""The history of a generation: when each token was committed and how sure the model was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dllm.state.canvas import NEVER

_SHOWN = 8  # rows that a short form tells of
_COLUMNS = ("row", "step", "column", "token", "confidence")


def as_frame(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """Returns a pandas.DataFrame; raises ImportError that says how to get pandas."""
    try:
        import pandas  # type: ignore[import-untyped]  # optional
    except ModuleNotFoundError:
        raise ImportError("to_pandas needs pandas: pip install 'dllm[pandas]'") from None
    return pandas.DataFrame(list(records), columns=list(columns))


@dataclass(frozen=True, repr=False)
class Trace:
    """Enough to replay a generation step by step; all tensors on the CPU."""

    tokens: Tensor  # (B, L) int64 final tokens
    commit_step: Tensor  # (B, L) int32 forward of the row that committed it, -1: none did
    confidence: Tensor  # (B, L) float32 at that moment, NaN where none did
    prompt_length: Tensor  # (B,) int64
    length: Tensor  # (B,) int64 columns of each row, those included that a method cut off
    given: Tensor  # (B, L) bool: prompt, padding and infill text, there before the first forward
    block_entry: Tensor  # (B, L) int32 forwards before a block that begins there, -1: none does
    mask_token_id: int
    # Of a method that revises: each row's writes in order, (forward, column, token).
    changes: tuple[tuple[tuple[int, int, int], ...], ...] | None = None

    def __repr__(self) -> str:
        rows, columns = self.tokens.shape
        steps = ", ".join(str(self.num_steps(row)) for row in range(min(rows, _SHOWN)))
        more = ", ..." if rows > _SHOWN else ""
        return f"Trace({rows} x {columns} tokens, steps of each row: {steps}{more})"

    def num_steps(self, row: int) -> int:
        """Returns the forwards of a row until its last change."""
        if self.changes is not None:
            return max((step for step, _, _ in self.changes[row]), default=-1) + 1
        return int(self.commit_step[row].max()) + 1

    def commits(self, row: int) -> list[list[tuple[int, int]]]:
        """Returns, for each forward of a row, the (column, token) pairs that it wrote.

        A column that was opened again is written with the mask token.
        """
        steps: list[list[tuple[int, int]]] = [[] for _ in range(self.num_steps(row))]
        for step, column, token in self._writes(row):
            steps[step].append((column, token))
        return steps

    def bits(self, row: int) -> float:
        """Returns the information of a row's committed tokens: the sum of -log2 of confidence."""
        confidence = self.confidence[row][self.commit_step[row] != NEVER]
        return float(-confidence.double().clamp(min=1e-30).log2().sum())

    def replay(self, row: int) -> Iterator[list[int]]:
        """Yields a row's canvas (L token ids) before the first forward and after each.

        What an end token overwrote or filled shows in the last one only.
        """
        canvas = self.tokens[row].where(self.given[row], self.mask_token_id).tolist()
        commits = self.commits(row)
        yield list(canvas)
        for written in commits[:-1]:
            for column, token in written:
                canvas[column] = token
            yield list(canvas)
        if commits:
            yield self.tokens[row].tolist()

    def _writes(self, row: int) -> list[tuple[int, int, int]]:
        if self.changes is not None:
            return list(self.changes[row])
        tokens, steps = self.tokens[row].tolist(), self.commit_step[row].tolist()
        pairs = enumerate(zip(steps, tokens, strict=True))
        return [(step, column, token) for column, (step, token) in pairs if step != NEVER]

    def to_pandas(self) -> Any:
        """Returns a pandas.DataFrame with a line for each write: row, step, column, token, ...

        `confidence` is known of the write that stands in the end, and NaN of those before it.
        """
        records = []
        for row in range(len(self.tokens)):
            steps, confidence = self.commit_step[row].tolist(), self.confidence[row].tolist()
            for step, column, token in self._writes(row):
                sure = confidence[column] if steps[column] == step else float("nan")
                values = (row, step, column, token, sure)
                records.append(dict(zip(_COLUMNS, values, strict=True)))
        return as_frame(records, _COLUMNS)

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
            "changes": self.changes,
        }
