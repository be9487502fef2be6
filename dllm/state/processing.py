"""What is done to logits before anything is proposed: least lengths, penalties, users' rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Scores (N, V) of N columns from the rows that they stand in, (N, L) int64.
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]

# Of transformers, those that ask what tokens a row holds, or nothing of it. The others read the
# end of a text that grows at its end, or its length, which a canvas does not have.
_ANYWHERE = (
    *("RepetitionPenaltyLogitsProcessor", "SuppressTokensLogitsProcessor"),
    *("TemperatureLogitsWarper", "TopPLogitsWarper", "TopKLogitsWarper", "TopHLogitsWarper"),
    *("MinPLogitsWarper", "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper"),
    *("InfNanRemoveLogitsProcessor", "LogitNormalization"),
)


@dataclass(frozen=True)
class Processing:
    """Rules for the logits of a column, which see the tokens that its row holds by then.

    Tokens that are committed together do not see each other.
    """

    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    min_new_tokens: int = 0  # slots of a row that hold no end token
    repetition_penalty: float = 1.0  # arXiv 1909.05858, section 4.1, over prompt and answer
    processors: tuple[LogitsProcessor, ...] = ()
    # (P,) int64 of each prompt the column before which no text ends: neither end tokens nor
    # `pad_token_ids` may stand there; None: anywhere.
    first_end: Tensor | None = None
    pad_token_ids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        late = self.min_new_tokens > 0 and bool(self.eos_token_ids)
        held = late or self.first_end is not None
        return held or self.repetition_penalty != 1 or bool(self.processors)

    def __call__(self, logits: Tensor, columns: Tensor, rows: Rows) -> Tensor:
        """Returns the logits (B, w, V) of columns (B, w) int64 as the rules leave them."""
        if self.repetition_penalty != 1:
            seen = self._seen(rows, logits.shape[-1])
            weaker = torch.where(
                logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty
            )
            logits = torch.where(seen[:, None], weaker, logits)
        if self.processors:
            logits = self._processed(logits, rows)
        if self.min_new_tokens > 0 and self.eos_token_ids:
            early = columns - rows.prompt_length[:, None] < self.min_new_tokens
            logits = _barred(logits, early, self.eos_token_ids)
        if self.first_end is not None:
            early = columns < self.first_end[rows.prompts][:, None]
            logits = _barred(logits, early, (*self.eos_token_ids, *self.pad_token_ids))
        return logits

    def _seen(self, rows: Rows, vocab_size: int) -> Tensor:
        """Returns which tokens each row holds, (B, V) bool; the mask is none."""
        held = self._held(rows)
        seen = torch.zeros(len(held), vocab_size, dtype=torch.bool, device=held.device)
        seen.scatter_(1, held, True)
        seen[:, self.mask_token_id] = False
        return seen

    def _held(self, rows: Rows) -> Tensor:
        """Returns the tokens of rows (B, C) int64, with masks for what is open or padding."""
        numbers = torch.arange(rows.tokens.shape[1], device=rows.tokens.device)
        return rows.tokens.masked_fill(numbers >= rows.length[:, None], self.mask_token_id)

    def _processed(self, logits: Tensor, rows: Rows) -> Tensor:
        num_rows, width, vocab_size = logits.shape
        held = self._held(rows)[:, None].expand(-1, width, -1).flatten(0, 1)
        scores = logits.flatten(0, 1).clone()  # which a processor may write into
        for processor in self.processors:
            scores = processor(held, scores)
            if not isinstance(scores, Tensor) or scores.shape != (num_rows * width, vocab_size):
                shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(
                    f"logits processor {type(processor).__name__} returned {shape}, and must "
                    f"return scores of the shape it was given, {(num_rows * width, vocab_size)}"
                )
        return scores.unflatten(0, (num_rows, width))


def _barred(logits: Tensor, where: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Returns logits (B, w, V) with -inf for tokens at the columns `where` (B, w) bool."""
    barred = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    for token in tokens:  # a few, known to the host
        barred[token] = True
    return logits.masked_fill(where[..., None] & barred, -torch.inf)


@dataclass(frozen=True)
class Rows:
    """The rows that columns stand in, as rules see them."""

    tokens: Tensor  # (B, C) int64
    prompt_length: Tensor  # (B,) int64
    length: Tensor  # (B,) int64 tokens, prompt and slots together
    prompts: Tensor  # (B,) int64 whose rows


def check_processors(processors: Iterable[LogitsProcessor]) -> None:
    """Raises ValueError for processors of transformers that mean nothing on a canvas."""
    for one in processors:
        name = type(one).__name__
        if type(one).__module__.startswith("transformers.") and name not in _ANYWHERE:
            raise ValueError(
                f"logits_processors holds transformers' {name}, which reads the end of a text or "
                "its length, and a canvas is filled in any order: known to work are "
                f"{', '.join(_ANYWHERE)}; min_new_tokens and forbidden_token_ids are settings"
            )
