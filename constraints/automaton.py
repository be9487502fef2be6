"""The messages between languages and the engine: automata over bytes and over tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEAD = -1  # no next state
NEVER = 0  # the class of tokens that no string of the language has
ENDLESS = np.iinfo(np.int32).max  # `shortest` of a state from which nothing is accepted


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over bytes: minimal, every state reachable and of use.

    Of the empty language there are no states.
    """

    table: NDArray[np.int32]  # (Q, 256) next state, DEAD for none
    accepting: NDArray[np.bool_]  # (Q,)
    start: int = 0

    @property
    def num_states(self) -> int:
        """Q, 0 of the empty language."""
        return len(self.table)

    @property
    def empty(self) -> bool:
        """Whether no string is accepted."""
        return not self.num_states

    def accepts(self, text: bytes) -> bool:
        """Returns whether a whole string is in the language."""
        state = DEAD if self.empty else self.start
        for byte in text:
            if state == DEAD:
                return False
            state = int(self.table[state, byte])
        return state != DEAD and bool(self.accepting[state])


@dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """A deterministic automaton over classes of tokens, the end of the text included.

    From accepting states an end token leads to a state that end tokens and padding do not leave.
    """

    class_of: NDArray[np.int32]  # (V,) class of each token; class NEVER is dead everywhere
    table: NDArray[np.int32]  # (Q, K) next state, DEAD for none
    accepting: NDArray[np.bool_]  # (Q,)
    start: int
    shortest: NDArray[np.int32]  # (Q,) fewest tokens to an accepting state; ENDLESS: there is none

    @property
    def num_states(self) -> int:
        """Q, 0 of the empty language."""
        return len(self.table)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.table.shape[1]

    @property
    def empty(self) -> bool:
        """Whether no string of tokens is accepted."""
        return not self.num_states or bool(self.shortest[self.start] == ENDLESS)

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self.class_of, self.table, self.accepting, self.shortest)
        return sum(array.nbytes for array in arrays)

    def accepts(self, tokens: list[int]) -> bool:
        """Returns whether a whole string of tokens is in the language."""
        state = self.start if self.num_states else DEAD
        for token in tokens:
            if state == DEAD:
                return False
            state = int(self.table[state, self.class_of[token]])
        return state != DEAD and bool(self.accepting[state])


def shortest_of(table: NDArray[np.int32], accepting: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Returns the fewest steps from each state to an accepting one, (Q,), ENDLESS for none.

    `table` (Q, K) holds next states, DEAD for none.
    """
    steps = np.where(accepting, 0, ENDLESS).astype(np.int32)
    length = 0
    while True:
        reached = np.append(steps, ENDLESS)[table] == length  # DEAD is the appended one
        new = reached.any(1) & (steps == ENDLESS)
        if not new.any():
            return steps
        length += 1
        steps[new] = length
