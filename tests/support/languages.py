"""Small random languages, and what of a canvas with holes they allow, by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from dllm.constraints.automaton import DEAD, NEVER, TokenAutomaton, shortest_of
from dllm.constraints.language import OPEN


def automaton_of(
    table: Sequence[Sequence[int]], accepting: Sequence[bool], class_of: Sequence[int] | None = None
) -> TokenAutomaton:
    """Returns an automaton whose states begin at 0; a table of tokens has a class for each."""
    made = np.array(table, dtype=np.int32)
    if class_of is None:  # class 0 is of no token
        made = np.concatenate([np.full((len(made), 1), DEAD, np.int32), made], 1)
        class_of = range(1, made.shape[1])
    classes = np.array(class_of, dtype=np.int32)
    ends = np.array(accepting, dtype=bool)
    return TokenAutomaton(classes, made, ends, 0, shortest_of(made, ends))


def random_automaton(rng: np.random.Generator, vocab_size: int) -> TokenAutomaton:
    """Returns an automaton of up to five states in which some tokens may be in no string."""
    states, classes = int(rng.integers(1, 6)), int(rng.integers(1, vocab_size + 1))
    table = rng.integers(0, states, (states, classes + 1))
    table[rng.random(table.shape) < rng.choice([0.1, 0.4, 0.7])] = DEAD
    table[:, NEVER] = DEAD
    class_of = rng.integers(0 if rng.random() < 0.3 else 1, classes + 1, vocab_size)
    return automaton_of(table.tolist(), (rng.random(states) < 0.4).tolist(), class_of.tolist())


@dataclass(frozen=True)
class Enumerated:
    """All fillings of a canvas with holes that are in a language."""

    canvas: tuple[int, ...]  # OPEN at holes
    fillings: list[tuple[int, ...]]

    def allowed(self, automaton: TokenAutomaton, column: int) -> set[int]:
        """Returns the tokens that a column may hold, whatever it holds now."""
        freed = list(self.canvas)
        freed[column] = OPEN
        return {one[column] for one in enumerated(automaton, freed).fillings}


def enumerated(automaton: TokenAutomaton, canvas: Sequence[int]) -> Enumerated:
    """Returns every accepted filling of a canvas."""
    vocabulary = range(len(automaton.class_of))
    choices = [vocabulary if token == OPEN else (token,) for token in canvas]
    fillings = [one for one in product(*choices) if automaton.accepts(list(one))]
    return Enumerated(tuple(canvas), fillings)
