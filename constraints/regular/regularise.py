"""From a context-free grammar to a regular language: exact where it can be, else of bounded depth.

A rule that uses itself at its left end alone, or at its right end alone, is a repetition, and a
graph says the same. Other uses of itself are cut: they stand for the language of one level less.
Cut first are those with something on both sides, of which most grammars have no others: brackets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dllm.constraints.regular.determinise import automaton_of
from dllm.constraints.regular.expression import (
    EMPTY,
    NOTHING,
    Expression,
    Known,
    Network,
    Sequence,
    joined,
)

Symbol = str | Expression  # the name of a rule, or texts
Rules = dict[str, list[tuple[Symbol, ...]]]  # the alternatives of each rule


@dataclass(frozen=True)
class Use:
    """A place in an alternative that names a rule."""

    rule: str
    alternative: int
    place: int


class Bounded:
    """The languages of a grammar's rules, each level of depth from the one below."""

    def __init__(self, rules: Rules, start: str, behind: Expression) -> None:
        self.rules = rules
        self.start = start
        self.behind = behind  # what may follow the text of the first rule
        self.cut: set[Use] = set()
        while more := [use for group in self._groups() for use in self._to_cut(group)]:
            self.cut.update(more)
        self.groups = self._groups()

    def expression(self, depth: int) -> Expression:
        """Returns the texts of the first rule; raises TooLargeError on the way."""
        below: dict[str, Expression] = {}
        for _ in range(depth + 1 if self.cut else 1):
            found: dict[str, Expression] = {}
            for group in self.groups:
                found |= self._level(group, found, below)
            below = found
        return joined(below[self.start], self.behind)

    def _uses(self, rule: str) -> Iterator[tuple[Use, str]]:
        """Yields the places of a rule that name a rule and are not cut, and that rule."""
        for number, symbols in enumerate(self.rules[rule]):
            for place, symbol in enumerate(symbols):
                use = Use(rule, number, place)
                if isinstance(symbol, str) and use not in self.cut:
                    yield use, symbol

    def _groups(self) -> list[list[str]]:
        """Returns the groups of rules that use each other, those that are used first (Tarjan)."""
        after = {rule: [name for _, name in self._uses(rule)] for rule in self.rules}
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        groups: list[list[str]] = []
        for first in self.rules:
            walk = [(first, iter(after[first]))] if first not in index else []
            while walk:
                rule, rest = walk[-1]
                if rule not in index:
                    index[rule] = low[rule] = len(index)
                    stack.append(rule)
                name = next(rest, None)
                if name is not None and name not in index:
                    walk.append((name, iter(after[name])))
                elif name is not None:
                    low[rule] = min(low[rule], index[name]) if name in stack else low[rule]
                else:
                    walk.pop()
                    if walk:
                        low[walk[-1][0]] = min(low[walk[-1][0]], low[rule])
                    if low[rule] == index[rule]:
                        place = stack.index(rule)
                        groups.append(stack[place:])
                        del stack[place:]
        return groups

    def _within(self, group: list[str]) -> list[Use]:
        """Returns the uses inside a group of rules of that group, of those that are not cut."""
        return [use for rule in group for use, name in self._uses(rule) if name in group]

    def _is_left(self, use: Use) -> bool:
        return use.place == 0

    def _is_right(self, use: Use) -> bool:
        return use.place == len(self.rules[use.rule][use.alternative]) - 1

    def _to_cut(self, group: list[str]) -> list[Use]:
        """Returns uses that keep a group from being a repetition, none if it is one."""
        within = self._within(group)
        left = [use for use in within if self._is_left(use)]
        right = [use for use in within if self._is_right(use)]
        if len(left) == len(within) or len(right) == len(within):
            return []
        inner = [use for use in within if not self._is_left(use) and not self._is_right(use)]
        if inner:
            return inner
        kept = left if len(left) >= len(right) else right
        return [use for use in within if use not in kept]

    def _level(
        self, group: list[str], found: dict[str, Expression], below: dict[str, Expression]
    ) -> dict[str, Expression]:
        """Returns the languages of a group of rules, from those it uses and those a level below."""
        within = self._within(group)
        left = all(self._is_left(use) for use in within)
        edges: list[tuple[int, Expression, int]] = []
        nodes = {rule: number for number, rule in enumerate(group, start=1)}
        for rule in group:
            for number, symbols in enumerate(self.rules[rule]):
                own = next((u for u in within if (u.rule, u.alternative) == (rule, number)), None)
                parts = [
                    self._text(Use(rule, number, place), symbol, found, below)
                    for place, symbol in enumerate(symbols)
                    if own is None or place != own.place
                ]
                other = 0 if own is None else nodes[str(symbols[own.place])]
                text = Sequence(tuple(parts)) if parts else EMPTY
                # Node 0 is the beginning of a repetition at the left, the end of one at the right.
                edges.append((other, text, nodes[rule]) if left else (nodes[rule], text, other))
        graph = tuple(edges)
        return {
            rule: Known(automaton_of(Network(graph, 0, node) if left else Network(graph, node, 0)))
            for rule, node in nodes.items()
        }

    def _text(
        self,
        use: Use,
        symbol: Symbol,
        found: dict[str, Expression],
        below: dict[str, Expression],
    ) -> Expression:
        if isinstance(symbol, Expression):
            return symbol
        return below.get(symbol, NOTHING) if use in self.cut else found[symbol]
