"""A language as arrows between states, and the states from which a given rest can be filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.automaton import DEAD, ENDLESS, NEVER, TokenAutomaton, shortest_of

OPEN = -1  # in a list of tokens: a mask, which any token may fill


@dataclass(frozen=True, eq=False)
class Language:
    """A token automaton with its arrows listed: what may follow what, and by which classes."""

    automaton: TokenAutomaton

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens of each class, (K,)."""
        return np.bincount(self.automaton.class_of, minlength=self.automaton.num_classes)

    @cached_property
    def members(self) -> list[NDArray[np.int64]]:
        """The tokens of each class."""
        order = np.argsort(self.automaton.class_of, kind="stable")
        return np.split(order, self.sizes.cumsum()[:-1])

    @cached_property
    def _arrows(self) -> tuple[NDArray[np.int64], ...]:
        """The pairs of states that a token joins, (E,) twice, and pair and class of labels (n,)."""
        states, classes = np.nonzero(self.table >= 0)
        pairs = states.astype(np.int64) * self.automaton.num_states + self.table[states, classes]
        joined, pair = np.unique(pairs, return_inverse=True)
        sources, targets = np.divmod(joined, max(self.automaton.num_states, 1))
        return sources, targets, pair, classes

    @cached_property
    def table(self) -> NDArray[np.int32]:
        """The next states of classes that hold tokens, (Q, K)."""
        live = self.sizes > 0
        live[NEVER] = False
        return np.where(live, self.automaton.table, DEAD)

    @property
    def sources(self) -> NDArray[np.int64]:
        """The states that arrows leave, (E,), in ascending order."""
        return self._arrows[0]

    @property
    def targets(self) -> NDArray[np.int64]:
        """The states that arrows reach, (E,)."""
        return self._arrows[1]

    @property
    def label_pairs(self) -> NDArray[np.int64]:
        """The arrows of all labels, (n,): a label is a class that an arrow can be taken by."""
        return self._arrows[2]

    @property
    def label_classes(self) -> NDArray[np.int64]:
        """The classes of all labels, (n,)."""
        return self._arrows[3]

    def tails(self, rest: Sequence[int]) -> NDArray[np.bool_]:
        """Returns which states accept the last 0, 1, ... tokens of `rest`, (n + 1, Q) bool.

        `rest` holds token ids, and OPEN where any token may stand. Where all is open, the list
        ends with the first entry that all later ones repeat.
        """
        after = self.automaton.accepting
        found = [after]
        for token in reversed(rest):
            before = self._before(after) if token == OPEN else self._before_token(after, token)
            found.append(before)
            if all_open(rest) and np.array_equal(before, after):
                found.pop()
                break
            after = before
        return np.stack(found)

    def _before(self, after: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns which states have an arrow into a set, (Q,) bool."""
        into = self.sources[after[self.targets]]
        return np.bincount(into, minlength=self.automaton.num_states) > 0

    def _before_token(self, after: NDArray[np.bool_], token: int) -> NDArray[np.bool_]:
        """Returns from which states one token leads into a set, (Q,) bool."""
        column = self.table[:, self.automaton.class_of[token]]
        return np.append(after, False)[column]  # DEAD is the appended one


def all_open(rest: Sequence[int]) -> bool:
    """Whether a list of tokens is all masks."""
    return all(token == OPEN for token in rest)


def language_of(
    automaton: TokenAutomaton, vocab_size: int, forbidden: Sequence[int] = ()
) -> Language:
    """Returns the language of an automaton over a model's vocabulary, without some tokens.

    Tokens that the automaton does not know of are in no string: the padding of a vocabulary.
    """
    class_of = np.full(vocab_size, NEVER, dtype=np.int32)
    known = automaton.class_of[:vocab_size]
    class_of[: len(known)] = known
    class_of[[token for token in forbidden if 0 <= token < vocab_size]] = NEVER
    language = Language(replace(automaton, class_of=class_of))
    if np.array_equal(language.table, automaton.table):
        return language
    shortest = shortest_of(language.table, automaton.accepting)
    return Language(replace(automaton, class_of=class_of, table=language.table, shortest=shortest))


def shortest_length(language: Language) -> int | None:
    """Returns the fewest tokens of any string of a language, None where it has none."""
    automaton = language.automaton
    if automaton.empty:
        return None
    shortest = int(automaton.shortest[automaton.start])
    return None if shortest == ENDLESS else shortest
