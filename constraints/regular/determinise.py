"""From expressions to minimal automata over bytes of UTF-8, within bounds of states and work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.automaton import DEAD, ByteAutomaton
from dllm.constraints.regular.expression import (
    Both,
    Characters,
    Either,
    Expression,
    Known,
    Network,
    Ranges,
    Repeated,
    Sequence,
    Without,
)
from dllm.constraints.regular.minimise import minimal
from dllm.constraints.regular.utf8 import utf8_of

MAX_STATES = 10_000  # of an automaton while it is made; a table of all of them takes 10 MB
_MOST_PARTS = 20 * MAX_STATES  # states before they are made deterministic
_MOST_WORK = 500 * MAX_STATES  # small steps; some seconds


class TooLargeError(ValueError):
    """A language whose automaton would take more states or time than is allowed."""


def automaton_of(expression: Expression) -> ByteAutomaton:
    """Returns the minimal automaton of an expression.

    Raises TooLargeError for one that takes too many states on the way.
    """
    graph = _Graph()
    try:
        end = graph.add(expression, graph.new())
    except RecursionError:
        raise TooLargeError("it nests its parts too deeply") from None
    return graph.determinise(end)


class _Graph:
    """An automaton with choices: several next states for a byte, and moves without any."""

    def __init__(self) -> None:
        self.moves: list[list[tuple[int, int, int]]] = []  # first byte, last byte, next state
        self.free: list[list[int]] = []  # next states without a byte
        self.work = 0

    def new(self) -> int:
        if len(self.moves) >= _MOST_PARTS:
            raise TooLargeError(
                f"it takes more than {_MOST_PARTS} parts, counted repetitions written out: allow "
                "fewer repetitions"
            )
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def spend(self, steps: int) -> None:
        self.work += steps
        if self.work > _MOST_WORK:
            raise TooLargeError("it takes too long to make deterministic: write it more simply")

    def add(self, expression: Expression, start: int) -> int:
        """Returns the state after a text of an expression from `start`, which gets no move back."""
        self.spend(1)
        if isinstance(expression, Characters):
            return self._add_characters(expression.ranges, start)
        if isinstance(expression, Sequence):
            for part in expression.parts:
                start = self.add(part, start)
            return start
        if isinstance(expression, Either):
            end = self.new()
            for part in expression.parts:
                self.free[self.add(part, start)].append(end)
            return end
        if isinstance(expression, Repeated):
            return self._add_repeated(expression, start)
        if isinstance(expression, Network):
            return self._add_network(expression, start)
        return self._add_known(_known(expression), start)

    def _add_characters(self, ranges: Ranges, start: int) -> int:
        end = self.new()
        places = {0: end}
        for node, moves in utf8_of(ranges):
            # The root is the last node, and nothing leads to it.
            places[node] = start if node == -1 else self.new()
            self.moves[places[node]] += [(low, high, places[to]) for low, high, to in moves]
        return end

    def _add_repeated(self, repeated: Repeated, start: int) -> int:
        if repeated.part == Sequence(()):
            return start
        for _ in range(repeated.least):
            self.spend(100)  # a part that adds no state, so that no number of them takes long
            start = self.add(repeated.part, start)
        if repeated.most is None:
            loop = self.new()
            self.free[start].append(loop)
            self.free[self.add(repeated.part, loop)].append(loop)
            return loop
        end = self.new()
        self.free[start].append(end)
        for _ in range(repeated.most - repeated.least):
            start = self.add(repeated.part, start)
            self.free[start].append(end)
        return end

    def _add_network(self, network: Network, start: int) -> int:
        nodes = {network.start, network.end, *(n for a, _, b in network.edges for n in (a, b))}
        places = {node: self.new() for node in sorted(nodes)}
        self.free[start].append(places[network.start])
        for before, text, after in network.edges:
            self.free[self.add(text, places[before])].append(places[after])
        return places[network.end]

    def _add_known(self, known: ByteAutomaton, start: int) -> int:
        end = self.new()
        if known.empty:
            return end
        places = [self.new() for _ in range(known.num_states)]
        self.free[start].append(places[known.start])
        for state, row in enumerate(known.table):
            edges = np.flatnonzero(np.diff(row)) + 1
            for low, after in zip((0, *edges), (*edges, 256), strict=True):
                if row[low] != DEAD:
                    self.moves[places[state]].append((int(low), int(after) - 1, places[row[low]]))
            if known.accepting[state]:
                self.free[places[state]].append(end)
        return end

    def determinise(self, end: int) -> ByteAutomaton:
        """Returns the automaton whose states are sets of these, from state 0 to `end`."""
        class_of = self._byte_classes()
        spread = [self._by_class(moves, class_of) for moves in self.moves]
        first = self._closure([0], end)
        numbers, known = {first: 0}, {frozenset([0]): 0}
        rows, accepting = [], []
        waiting = [first]
        for states in waiting:
            accepting.append(end in states)
            found: defaultdict[int, set[int]] = defaultdict(set)
            for state in states:
                for number, after in spread[state]:
                    found[number].add(after)
                self.spend(len(spread[state]))
            row = [DEAD] * (int(class_of[-1]) + 1)
            for number, reached in found.items():
                after_states = frozenset(reached)
                if after_states not in known:
                    closed = self._closure(after_states, end)
                    known[after_states] = numbers.setdefault(closed, len(numbers))
                    if len(numbers) > len(waiting):
                        waiting.append(closed)
                row[number] = known[after_states]
            rows.append(row)
            if len(numbers) > MAX_STATES:
                raise TooLargeError(
                    f"its automaton has more than {MAX_STATES} states: allow fewer repetitions, or "
                    "characters of fewer kinds ((?a) keeps \\w, \\d and \\s to ASCII)"
                )
        table, ends = minimal(np.array(rows, dtype=np.int32), np.array(accepting, dtype=np.bool_))
        return ByteAutomaton(np.ascontiguousarray(table[:, class_of]), ends)

    def _byte_classes(self) -> NDArray[np.int64]:
        """Returns the class of each byte, (256,): bytes of one class are in the same moves."""
        edges = np.zeros(257, dtype=np.int64)
        for moves in self.moves:
            for low, high, _ in moves:
                edges[low] = edges[high + 1] = 1
        edges[0] = 0
        return edges[:256].cumsum()

    def _closure(self, states: Iterable[int], end: int) -> frozenset[int]:
        """Returns what states reach without a byte, less what has no move of its own."""
        seen = set(states)
        stack = list(seen)
        while stack:
            for one in self.free[stack.pop()]:
                if one not in seen:
                    seen.add(one)
                    stack.append(one)
        self.spend(len(seen))
        return frozenset(one for one in seen if self.moves[one] or one == end)

    def _by_class(
        self, moves: list[tuple[int, int, int]], class_of: NDArray[np.int64]
    ) -> list[tuple[int, int]]:
        return [
            (number, after)
            for low, high, after in moves
            for number in range(int(class_of[low]), int(class_of[high]) + 1)
        ]


def _known(expression: Expression) -> ByteAutomaton:
    """Returns the automaton of an expression that is none of the parts of regular expressions."""
    if isinstance(expression, Known):
        return expression.automaton
    assert isinstance(expression, Both | Without)
    one, other = automaton_of(expression.one), automaton_of(expression.other)
    return both(one, other) if isinstance(expression, Both) else without(one, other)


def product(
    one: ByteAutomaton, other: ByteAutomaton, accepts: Callable[[bool, bool], bool]
) -> ByteAutomaton:
    """Returns the automaton of the texts for which `accepts` holds of whether each accepts them.

    Raises TooLargeError as `automaton_of` does.
    """
    width = other.num_states + 1
    tables = [np.vstack([a.table, np.full((1, 256), DEAD, np.int32)]) for a in (one, other)]
    ends = [np.append(a.accepting, False) for a in (one, other)]
    tables = [np.where(t == DEAD, len(t) - 1, t) for t in tables]
    first = [a.start if a.num_states else 0 for a in (one, other)]
    numbers = {first[0] * width + first[1]: 0}
    waiting, rows, accepting = list(numbers), [], []
    for pair in waiting:
        a, b = divmod(pair, width)
        accepting.append(accepts(bool(ends[0][a]), bool(ends[1][b])))
        after, where = np.unique(tables[0][a] * width + tables[1][b], return_inverse=True)
        for code in after.tolist():
            if code not in numbers:
                numbers[code] = len(numbers)
                waiting.append(code)
        rows.append(np.array([numbers[code] for code in after.tolist()], dtype=np.int32)[where])
        if len(numbers) > MAX_STATES:
            raise TooLargeError(f"two conditions together take more than {MAX_STATES} states")
    table, found = minimal(np.array(rows), np.array(accepting, dtype=np.bool_))
    return ByteAutomaton(table, found)


def both(one: ByteAutomaton, other: ByteAutomaton) -> ByteAutomaton:
    """Returns the automaton of the texts that both accept."""
    return product(one, other, lambda a, b: a and b)


def without(one: ByteAutomaton, other: ByteAutomaton) -> ByteAutomaton:
    """Returns the automaton of the texts that one accepts and the other does not."""
    return product(one, other, lambda a, b: a and not b)
