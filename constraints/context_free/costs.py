"""The fewest bytes that bring a position of a network to its rule's end, and which they are."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from dllm.constraints.context_free.network import NONE, Network


@dataclass(frozen=True, eq=False)
class Costs:
    """The shortest text of each rule and position, over some bytes."""

    network: Network
    rest: list[float]  # (P,) bytes up to the end of the position's rule; inf: it has none
    least: list[float]  # (R,) bytes of a rule
    choice: list[int]  # (R,) the position at which the shortest text of a rule begins
    byte: list[int]  # (P,) of a terminal: the next byte of the shortest text, NONE at its end
    _texts: dict[int, bytes] = field(default_factory=dict)  # of rules

    def text(self, position: int) -> bytes:
        """Returns the shortest text from a position to its rule's end; it must have one."""
        network = self.network
        parts: list[bytes] = []
        while True:
            if network.moves[position] is not None:
                row, byte = network.moves[position], self.byte[position]
                if row is None or byte == NONE:
                    return b"".join(parts)
                parts.append(bytes([byte]))
                position = row[byte]
            elif network.expects[position] == NONE:
                return b"".join(parts)
            else:
                parts.append(self._of_rule(network.expects[position]))
                position = network.after[position]

    def _of_rule(self, rule: int) -> bytes:
        # A choice rests on texts that were known before it, so that no rule asks for itself.
        if rule not in self._texts:
            self._texts[rule] = self.text(self.choice[rule])
        return self._texts[rule]


def costs_of(network: Network, allowed: Sequence[int] = range(256)) -> Costs:
    """Returns the shortest texts over some bytes, of equal ones with bytes that come first."""
    size, rules = len(network.rule_of), len(network.begins)
    rest: list[float] = [math.inf] * size
    byte = [NONE] * size
    _measure_terminals(network, allowed, rest, byte)
    least: list[float] = [math.inf] * rules
    choice = [NONE] * rules
    changed = True
    while changed:  # at most once for each rule that another one needs
        changed = False
        for position in range(size):
            if network.moves[position] is None:
                rest[position] = _rest(network, position, rest, least)
        for rule, begins in enumerate(network.begins):
            for position in begins:
                if rest[position] < least[rule]:
                    least[rule], choice[rule], changed = rest[position], position, True
    return Costs(network, rest, least, choice, byte)


def _rest(network: Network, position: int, rest: list[float], least: list[float]) -> float:
    """Returns the bytes that are left of an alternative; what follows a symbol has lower number."""
    if network.finishes[position]:
        return 0
    return least[network.expects[position]] + rest[network.after[position]]


def _measure_terminals(
    network: Network, allowed: Sequence[int], rest: list[float], byte: list[int]
) -> None:
    """Writes the bytes from each state of a terminal to its end, and the first of them."""
    before: dict[int, list[tuple[int, int]]] = {}
    for position, row in enumerate(network.moves):
        for one in allowed if row is not None else ():
            if row is not None and row[one] != NONE:
                before.setdefault(row[one], []).append((position, one))
    ends = [at for at, row in enumerate(network.moves) if row is not None and network.finishes[at]]
    for position in ends:
        rest[position] = 0
    waiting = deque(ends)
    while waiting:
        position = waiting.popleft()
        for source, one in before.get(position, ()):
            if rest[source] == math.inf:
                rest[source], byte[source] = rest[position] + 1, one
                waiting.append(source)
