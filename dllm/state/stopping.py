"""What ends a row before its slots are full: stop strings, and cuts behind an end token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm.state.canvas import NEVER, Canvas


@dataclass(frozen=True)
class StopStrings:
    """Texts that end an answer, found in what stands before its first open slot.

    Which tokens make a text is known to the tokenizer alone, so the host reads the canvas once
    more in each step; a generation without stop strings does not.
    """

    strings: tuple[str, ...]
    text_of: Callable[..., Any]  # of token ids, special tokens included; a text

    def end_rows(self, canvas: Canvas) -> None:
        """Ends rows that hold a stop string: what stands behind it becomes padding."""
        numbers = torch.stack([canvas.prompt_length, canvas.length, canvas.finished.long()], 1)
        table = torch.cat([numbers, canvas.tokens], 1).tolist()
        last = [self._last(row, canvas) for row in table]
        if any(column is not None for column in last):
            columns = [canvas.tokens.shape[1] if column is None else column for column in last]
            cut_after(canvas, torch.tensor(columns, device=canvas.tokens.device))

    def _last(self, row: Sequence[int], canvas: Canvas) -> int | None:
        """Returns the column that completes a row's first stop string."""
        prompt, length, finished, *tokens = row
        layout = canvas.layout
        if finished:
            return None
        answer = tokens[prompt:length]
        if layout.mask_token_id in answer:
            answer = answer[: answer.index(layout.mask_token_id)]
        ends = (place for place, token in enumerate(answer) if token in layout.eos_token_ids)
        count = self.count(answer[: next(ends, len(answer))])
        return None if count is None else prompt + count - 1

    def count(self, tokens: Sequence[int]) -> int | None:
        """Returns how many tokens an answer has up to its first stop string; None: it has none."""
        if not self._is_in(tokens):
            return None
        # With one token more a text may end otherwise, but a string that is whole in it stays.
        return bisect_left(range(len(tokens)), True, key=lambda n: self._is_in(tokens[:n]))

    def cut(self, text: str) -> str:
        """Returns a text up to the first stop string in it."""
        found = [text.find(string) for string in self.strings if string in text]
        return text[: min(found)] if found else text

    def _is_in(self, tokens: Sequence[int]) -> bool:
        text = str(self.text_of(list(tokens)))
        return any(string in text for string in self.strings)


def cut_after(canvas: Canvas, last: Tensor) -> None:
    """Ends rows behind the column `last` (B,) int64; rows where that is no column go on."""
    _overwrite(canvas, (canvas.numbers > last[:, None]) & ~canvas.fixed)
    canvas.clean = torch.minimum(canvas.clean, last + 1)  # what was stored is of other tokens
    canvas.held = canvas.held & (last >= canvas.tokens.shape[1])


def truncate(canvas: Canvas, spares: bool) -> None:
    """Overwrites everything after the first end token of each row.

    A row that its block's first pass finished stays as it is, however long others run: its steps
    stand still.
    """
    ended = canvas.ended.int()
    after = (ended.cumsum(1) > ended) & ~canvas.fixed
    if spares:
        after = after & (canvas.step - canvas.entry_step != 1)[:, None]
    _overwrite(canvas, after)


def _overwrite(canvas: Canvas, after: Tensor) -> None:
    """Makes columns (B, C) bool padding that nobody committed."""
    canvas.overwrite(after, canvas.layout.fill_token_id)
    canvas.commit_step.masked_fill_(after, NEVER)
    canvas.commit_confidence.masked_fill_(after, float("nan"))
