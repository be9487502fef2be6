"""An answer as text in reading order, while its tokens come in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # start-up time: whoever has a tokenizer has imported it
    from transformers import PreTrainedTokenizerBase


_PART = "\ufffd"  # stands for bytes of a character that is not whole yet


@dataclass(frozen=True)
class Transcript:
    """How the tokens of an answer become text."""

    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    stop: tuple[str, ...]

    def cut(self, tokens: Sequence[int]) -> list[int]:
        """Returns the tokens before the first mask or end token."""
        last = {self.mask_token_id, *self.eos_token_ids}
        ends = (place for place, token in enumerate(tokens) if token in last)
        return list(tokens[: next(ends, len(tokens))])

    def token(self, token: int) -> str:
        """Returns the text of one token by itself."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens up to the first stop string."""
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
        found = [text.find(string) for string in self.stop if string in text]
        return text[: min(found)] if found else text

    def final(self, tokens: Sequence[int]) -> str:
        """Returns the text that is final, of the tokens of an answer, masks among them.

        Without what later tokens may change: a part of a character, and what may be the beginning
        of a stop string.
        """
        text = self.text(self.cut(tokens)).rstrip(_PART)
        longest = max(map(len, self.stop), default=1) - 1
        return text[: len(text) - longest] if longest else text


def more(told: str, text: str) -> str:
    """Returns what a text has behind what was told of it; what was told is never taken back."""
    return text[len(told) :] if text.startswith(told) else ""
