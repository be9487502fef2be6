"""`Constraint`: a language of answers, and its automaton over a tokenizer's tokens."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from dllm.constraints.automaton import ByteAutomaton, TokenAutomaton
from dllm.constraints.regular.determinise import TooLargeError
from dllm.constraints.stored import Memory, maker, on_disk
from dllm.constraints.tokens import token_automaton
from dllm.constraints.vocabulary import Ends, Tokenizer, Vocabulary, ends_of, vocabulary_of

Kind = Literal["exact", "over", "under"]
_BYTES: Memory[ByteAutomaton] = Memory(64)
_TOKENS: Memory[TokenAutomaton] = Memory(64)


@dataclass(frozen=True)
class Constraint(ABC):
    """A set of texts that answers are held to."""

    @property
    @abstractmethod
    def source(self) -> str:
        """All that the language depends on, as one text."""

    @abstractmethod
    def build(self) -> ByteAutomaton:
        """Returns the automaton of the language, made anew; raises TooLargeError."""

    @property
    def kind(self) -> Kind:
        """Which texts are accepted: those of the source, more ("over") or fewer ("under")."""
        return "exact"

    def byte_automaton(self) -> ByteAutomaton:
        """Returns the automaton over bytes.

        Raises ValueError where the language is empty, or its automaton too large.
        """
        return _BYTES.get(self._name, self._made)

    def at(self, tokenizer: Tokenizer, ends: Ends | None = None) -> TokenAutomaton:
        """Returns the automaton over a tokenizer's tokens, with the end of the text in it.

        `ends` names the tokens that end a text and that stand behind it, by default the
        tokenizer's own. An automaton is made once for a source, a tokenizer and its ends, and kept
        in memory and on the disk. Raises ValueError where there is none, the tokens cannot spell
        any text of the language, or the tokenizer's tokens have no bytes that are known.
        """
        vocabulary = vocabulary_of(tokenizer)
        ends = ends_of(tokenizer) if ends is None else ends
        parts = (maker(), self._name, vocabulary.digest, repr(ends))
        name = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
        return _TOKENS.get(name, lambda: on_disk(name, lambda: self._over(vocabulary, ends)))

    def __str__(self) -> str:
        text = " ".join(self._title.split())
        shown = text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
        return f"{type(self).__name__}({shown})"

    @property
    def _title(self) -> str:
        """The part of the source that a message shows."""
        return self.source

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}\0{self.source}"

    def _made(self) -> ByteAutomaton:
        try:
            found = self.build()
        except TooLargeError as error:
            raise ValueError(f"{self} is too large: {error}") from None
        if found.empty:
            raise ValueError(f"{self} accepts no text at all")
        return found

    def _over(self, vocabulary: Vocabulary, ends: Ends) -> TokenAutomaton:
        try:
            found = token_automaton(self.byte_automaton(), vocabulary, ends)
        except TooLargeError as error:
            raise ValueError(f"{self} is too large: {error}") from None
        if found.empty:
            raise ValueError(f"{self} accepts no text that the tokenizer's tokens can spell")
        return found


def forget() -> None:
    """Drops the automata that are kept in memory; those on the disk stay."""
    _BYTES.clear()
    _TOKENS.clear()
