"""Tokens that may follow a text, of all at once: llguidance's engine for grammars.

It reads from left to right and knows neither what stands behind the next token nor how many slots
there are: rows that are decoded so take their proposals from it, and are asked about as others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.context_free.spelling import TokenTexts

# Any split into tokens, where it would take the tokenizer's own if a grammar leaves no choice of
# bytes; and what is ignored may also be before a text.
_OPTIONS = '%llguidance {"no_forcing": true, "allow_initial_skip": true}\n'


class PrefixEngine:
    """A grammar over the tokens of a model, as llguidance reads it.

    Its terminals are the longest that fit, so that it may allow less than the grammar has. Raises
    ValueError for what it cannot read, and ImportError where it is not installed.
    """

    def __init__(self, grammar: str, texts: TokenTexts, vocab_size: int) -> None:
        try:
            # An optional package.
            from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
        except ImportError:
            raise ImportError(
                "method='prefix' needs llguidance: pip install 'dllm[structured]', or take "
                "method='emptiness'"
            ) from None
        if texts.spellings.drops_space:
            raise ValueError(
                "method='prefix' takes a text for the bytes of its tokens, and the tokenizer drops "
                "a space that a text begins with: take method='emptiness'"
            )
        self.texts, self.vocab_size = texts, vocab_size
        eos = texts.eos[0] if texts.eos else vocab_size  # one that no logits have
        wrapped = TokenizerWrapper(_Tokens(texts, vocab_size, eos))
        self._tokenizer = LLTokenizer(wrapped, n_vocab=vocab_size + 1, eos_token=eos)
        self._grammar, self._matcher = LLMatcher.grammar_from_lark(_OPTIONS + grammar), LLMatcher
        if (made := self.matcher()).is_error():
            raise ValueError(
                f"llguidance cannot read the grammar: {made.get_error().strip()}; take "
                "method='emptiness'"
            )

    def matcher(self) -> Any:
        """Returns what follows a row from its first token on."""
        return self._matcher(self._tokenizer, self._grammar, log_level=0)


class PrefixRow:
    """One row, as far as it was read."""

    def __init__(self, engine: PrefixEngine) -> None:
        self._engine, self._matcher = engine, engine.matcher()
        self._read: list[int] = []

    def allowed(self, tokens: Sequence[int]) -> NDArray[np.bool_] | None:
        """Returns which tokens may follow those of a row, (V,), None where it does not read on.

        That is where the engine takes a text for another than the grammar does.
        """
        if self._engine.texts.ending.intersection(tokens):
            found = np.zeros(self._engine.vocab_size, dtype=np.bool_)
            found[list(self._engine.texts.ending)] = True
            return found
        same = 0
        for old, new in zip(self._read, tokens, strict=False):
            if old != new:
                break
            same += 1
        if same < len(self._read):
            self._matcher.rollback(len(self._read) - same)
        count = self._matcher.try_consume_tokens(list(tokens[same:]))
        self._read = list(tokens[: same + count])
        if len(self._read) < len(tokens):
            return None
        texts, size = self._engine.texts, self._engine.vocab_size
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: size + 1].astype(np.bool_)
        ends = list(texts.eos)
        if ends:
            found[ends] = found[ends[0]]
        found = found[:size]
        found[[one for one in texts.barred if one < size]] = False
        return found if found.any() else None


class _Tokens:
    """The tokens of a model as llguidance asks for them."""

    bos_token_id = None

    def __init__(self, texts: TokenTexts, vocab_size: int, eos: int) -> None:
        spelled = [texts.text_of(token) for token in range(vocab_size + 1)]
        self.eos_token_id = eos
        self.special_token_ids = [token for token, text in enumerate(spelled) if not text]
        # Its own sign of what is no text.
        self.tokens = [text or b"\xff<%d>" % token for token, text in enumerate(spelled)]

    def __call__(self, text: bytes) -> list[int]:
        """Returns no tokens: whether a split is the tokenizer's own is not asked."""
        return []
