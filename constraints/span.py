"""Where in a row a language stands, and what the row then must be; refused where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from dllm.constraints.automaton import TokenAutomaton
from dllm.constraints.base import Constraint
from dllm.constraints.language import OPEN, Language, language_of, shortest_length
from dllm.constraints.lines import RowLanguage

# Languages over models' tokens, as long as their automata are kept: other calls ask for the same.
_LANGUAGES: WeakKeyDictionary[TokenAutomaton, dict[tuple[int, tuple[int, ...]], Language]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class ConstraintSpan:
    """A constraint on some slots of a row, which they fill to the last one: no end token is there.

    Slots are counted from the prompt's end.
    """

    constraint: Constraint
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"start={self.start} and stop={self.stop} must be slots, the first one 0, and stop "
                "behind start"
            )


@dataclass
class Compiler:
    """Makes what rows must be of automata; what rows have in common is made once."""

    vocab_size: int
    forbidden: tuple[int, ...]  # tokens that are in no string, the mask among them

    def __post_init__(self) -> None:
        self._languages: dict[int, tuple[TokenAutomaton, Language]] = {}
        self._tails: dict[tuple[int, ...], Any] = {}

    def row(
        self, automaton: TokenAutomaton, held: Sequence[int], start: int, where: str
    ) -> RowLanguage:
        """Returns a row whose columns from `start` on hold tokens, OPEN at masks.

        Raises ValueError that begins with `where` if no filling of the masks is in the language.
        """
        if id(automaton) not in self._languages:
            known = _LANGUAGES.setdefault(automaton, {})
            over = self.vocab_size, self.forbidden
            if over not in known:
                known[over] = language_of(automaton, *over)
            self._languages[id(automaton)] = automaton, known[over]
        language = self._languages[id(automaton)][1]
        _check_length(language, len(held), where)
        key = (id(automaton), *held)
        if key not in self._tails:
            self._tails[key] = language.tails(held)
        tails = self._tails[key]
        if not tails[min(len(held), len(tails) - 1), language.automaton.start]:
            raise ValueError(_reason(language, held, where))
        return RowLanguage(language, start, start + len(held), tails)


def _check_length(language: Language, length: int, where: str) -> None:
    """Raises ValueError where a language has no string that is so short."""
    shortest = shortest_length(language)
    if shortest is None:
        raise ValueError(f"{where} accepts no text that this model's allowed tokens can spell")
    if shortest > length:
        raise ValueError(
            f"{where} takes at least {shortest} tokens, and there are {length} slots for it: give "
            f"max_new_tokens={shortest} or more"
        )


def _reason(language: Language, held: Sequence[int], where: str) -> str:
    """Returns why no filling of a row is accepted, though shorter strings are."""
    if any(token != OPEN for token in held):
        return f"{where} accepts no filling of the gaps: the given text does not go with it"
    tails = language.tails([OPEN] * len(held))
    lengths = np.flatnonzero(tails[:, language.automaton.start])
    return (
        f"{where} accepts no text of exactly {len(held)} tokens, and no end token may stand behind "
        f"a shorter one; the next shorter has {int(lengths[-1])}"
    )
