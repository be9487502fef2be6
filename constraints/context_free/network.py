"""A grammar as a network of positions: where in which rule a text may stand, byte by byte.

A position of a rule is what is left of one of its alternatives, so that alternatives share what
they end with, and a rule of many symbols takes no more than one of two: the binary normal form of
arXiv 2508.10111 (C2F+), with its unit and empty rules kept. A terminal is a rule whose positions
are the states of its automaton over bytes. So there is no lexing by itself: all splits of a text
into terminals are tried together, which is what their lexings of a word are made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dllm.constraints.automaton import DEAD
from dllm.constraints.regular.determinise import TooLargeError, automaton_of
from dllm.constraints.regular.expression import Expression
from dllm.constraints.regular.regularise import Rules, Symbol

NONE = -1  # no rule, no position
ROOT = 0  # the rule of whole texts
_MOST_POSITIONS = 50_000


@dataclass(frozen=True, eq=False)
class Network:
    """The positions of all rules; P positions, R rules."""

    rule_of: list[int]  # (P,)
    finishes: list[bool]  # (P,) whether the position's rule may end here
    expects: list[int]  # (P,) the rule that comes next, NONE where a byte does or nothing
    after: list[int]  # (P,) the position behind that rule
    moves: list[list[int] | None]  # (P,) of a terminal: the next position for each byte, or NONE
    begins: list[list[int]]  # (R,) the positions at which a rule begins

    @property
    def first(self) -> int:
        """The position before a whole text."""
        return self.begins[ROOT][0]

    @cached_property
    def last(self) -> int:
        """The position behind a whole text."""
        at = self.first
        while not self.finishes[at]:
            at = self.after[at]
        return at

    def steps(self, allowed: Sequence[int] = range(256)) -> list[dict[int, int]]:
        """Returns the next positions of each, with the first allowed byte that leads there."""
        found: list[dict[int, int]] = []
        for row in self.moves:
            found.append({})
            for byte in allowed if row is not None else ():
                if row is not None and row[byte] != NONE:
                    found[-1].setdefault(row[byte], byte)
        return found


def network_of(rules: Rules, start: str, behind: Expression) -> Network:
    """Returns the network of a grammar whose texts are those of `start` with `behind` after them.

    Raises TooLargeError where terminals and rules have too many positions.
    """
    maker = _Maker(rules)
    maker.add_rule((start, behind))
    for symbol in maker.waiting:
        maker.add_symbol(symbol)
    return maker.made


class _Maker:
    """Numbers rules and positions in the order in which they are needed."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.made = Network([], [], [], [], [], [[]])
        self.numbers: dict[Symbol, int] = {}
        self.places: dict[tuple[int, tuple[Symbol, ...]], int] = {}
        self.waiting: list[Symbol] = []

    def add_symbol(self, symbol: Symbol) -> None:
        rule = self.numbers[symbol]
        if isinstance(symbol, Expression):
            self._add_terminal(symbol, rule)
            return
        for symbols in self.rules[symbol]:
            place = self._position(rule, symbols)
            if place not in self.made.begins[rule]:
                self.made.begins[rule].append(place)

    def add_rule(self, symbols: tuple[Symbol, ...]) -> None:
        """Adds the rule of whole texts."""
        self.made.begins[ROOT].append(self._position(ROOT, symbols))

    def _position(self, rule: int, left: tuple[Symbol, ...]) -> int:
        if (rule, left) not in self.places:
            after = self._position(rule, left[1:]) if left else NONE
            expects = self._rule(left[0]) if left else NONE
            self.places[rule, left] = self._new(rule, not left, expects, after)
        return self.places[rule, left]

    def _new(self, rule: int, finishes: bool, expects: int = NONE, after: int = NONE) -> int:
        made = self.made
        if len(made.rule_of) >= _MOST_POSITIONS:
            raise TooLargeError(f"it has more than {_MOST_POSITIONS} positions")
        made.rule_of.append(rule)
        made.finishes.append(finishes)
        made.expects.append(expects)
        made.after.append(after)
        made.moves.append(None)
        return len(made.rule_of) - 1

    def _rule(self, symbol: Symbol) -> int:
        if symbol not in self.numbers:
            self.numbers[symbol] = len(self.made.begins)
            self.made.begins.append([])
            self.waiting.append(symbol)
        return self.numbers[symbol]

    def _add_terminal(self, text: Expression, rule: int) -> None:
        automaton = automaton_of(text)
        if automaton.empty:
            return
        first = len(self.made.rule_of)
        for accepting in automaton.accepting.tolist():
            self._new(rule, accepting)
        table = np.where(automaton.table == DEAD, NONE, automaton.table + first)
        self.made.moves[first:] = table.tolist()
        self.made.begins[rule].append(first + automaton.start)
