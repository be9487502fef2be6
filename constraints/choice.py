"""`Choice`: one of some texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dllm.constraints.automaton import ByteAutomaton
from dllm.constraints.base import Constraint
from dllm.constraints.regular.determinise import automaton_of
from dllm.constraints.regular.expression import Either, check_text, literal


@dataclass(frozen=True)
class Choice(Constraint):
    """Exactly one of some texts.

    Raises ValueError where there is none, or one has half of a surrogate pair alone.
    """

    texts: tuple[str, ...]

    def __init__(self, texts: Iterable[str]) -> None:
        if isinstance(texts, str):
            raise TypeError(f"Choice({texts!r}) is one text: give a list of them")
        texts = tuple(texts)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"Choice takes texts, and {text!r} is none")
            check_text(text)
        if not texts:
            raise ValueError("Choice has no text to choose from: give at least one")
        object.__setattr__(self, "texts", texts)

    @property
    def source(self) -> str:
        return repr(self.texts)

    def build(self) -> ByteAutomaton:
        return automaton_of(Either(tuple(literal(text) for text in self.texts)))
