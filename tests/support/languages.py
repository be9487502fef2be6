"""Small random languages, and what of a canvas with holes they allow, by enumeration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dllm.constraints import ByteAutomaton, Constraint, Ends
from dllm.constraints.automaton import DEAD, NEVER, TokenAutomaton, shortest_of
from dllm.constraints.engine import Segment, Tables
from dllm.constraints.language import OPEN, language_of
from dllm.constraints.lines import RowLanguage


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


def universal(vocab_size: int) -> TokenAutomaton:
    """Returns the automaton of all strings of all tokens."""
    return automaton_of([[DEAD, 0]], [True], [1] * vocab_size)


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


@dataclass(frozen=True, eq=False)
class Spelled(Constraint):
    """A constraint whose automaton is given: over classes of a model's tokens, and without an end.

    Tokens fall into its classes by their ids; end tokens and padding are added as languages do.
    """

    inner: TokenAutomaton  # over tokens 0, 1, ..., of which each model token is one, by remainder

    @property
    def source(self) -> str:
        return "an automaton"

    def build(self) -> ByteAutomaton:
        raise NotImplementedError("it is over tokens")

    def at(self, tokenizer: Any, ends: Ends | None = None) -> TokenAutomaton:
        """Returns the automaton over the tokens of a model, with the end of the text."""
        assert ends is not None
        assert ends.vocab_size is not None
        special = [*ends.eos_token_ids, *ends.pad_token_ids]
        inner, (states, classes) = self.inner, self.inner.table.shape
        class_of = inner.class_of[np.arange(ends.vocab_size) % len(inner.class_of)].copy()
        class_of[special] = NEVER
        class_of[list(ends.eos_token_ids)] = classes
        class_of[list(ends.pad_token_ids)] = classes + 1
        table = np.full((states + 1, classes + 2), DEAD, np.int32)
        table[:states, :classes] = inner.table
        table[:states, classes][inner.accepting] = states
        table[states, classes:] = states
        accepting = np.append(inner.accepting, True)
        return TokenAutomaton(
            class_of, table, accepting, inner.start, shortest_of(table, accepting)
        )


_MARGIN = 3  # columns beside the longest row, so that rows begin and end where others go on


@dataclass(frozen=True)
class Case:
    """A batch of rows with holes, of which some have a language."""

    rows: list[RowLanguage | None]
    held: list[list[int]]  # the tokens of each row's span, OPEN at holes
    tables: Tables
    tokens: Tensor  # (B, C)
    masked: Tensor  # (B, C) bool

    @property
    def columns(self) -> Tensor:
        """All columns of all rows, (B, C)."""
        return torch.arange(self.tokens.shape[1]).expand_as(self.tokens)

    @property
    def feasible(self) -> Tensor:
        """Which rows some filling is in the language of, or that have none, (B,) bool."""
        return self.tables.feasible(self.segment())

    def segment(self) -> Segment:
        """Returns all columns as a segment."""
        return self.tables.segment(self.tables.first, self.tokens, self.columns, self.masked)


def random_case(seed: int, num_rows: int = 20) -> Case:
    """Returns a batch of rows of up to seven columns, over at most five tokens."""
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.integers(2, 6))
    rows: list[RowLanguage | None] = []
    held = []
    for _ in range(num_rows):
        length = int(rng.integers(1, 8 if vocab_size < 4 else 6))
        given = rng.integers(0, vocab_size, length)
        given[rng.random(length) < rng.choice([0.4, 0.7, 1])] = OPEN
        held.append(given.tolist())
        if rng.random() < 0.1:
            rows.append(None)
            continue
        language = language_of(random_automaton(rng, vocab_size), vocab_size)
        start = int(rng.integers(0, _MARGIN))
        rows.append(RowLanguage(language, start, start + length, language.tails([OPEN] * length)))
    width = max(map(len, held)) + _MARGIN
    tokens = torch.from_numpy(rng.integers(0, vocab_size, (num_rows, width)))
    masked = torch.from_numpy(rng.random((num_rows, width)) < 0.5)
    for place, (row, given_row) in enumerate(zip(rows, held, strict=True)):
        start = row.start if row else 0
        span = torch.tensor(given_row)
        masked[place, start : start + len(span)] = span == OPEN
        tokens[place, start : start + len(span)] = span.clamp(min=0)
    return Case(rows, held, Tables(rows, torch.device("cpu")), tokens, masked)
