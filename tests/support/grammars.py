"""Small random grammars with their short texts, and rows of tokens and holes over them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dllm.constraints import Ends, Grammar
from dllm.constraints.context_free.row import FreeLanguage, FreeRow
from dllm.constraints.context_free.spelling import TokenTexts
from dllm.constraints.language import OPEN
from dllm.constraints.vocabulary import Spellings

LETTERS = "ab"
Rules = dict[str, list[list[str]]]


def random_rules(source: random.Random) -> Rules:
    """Returns the rules of a grammar over two letters; it may have no text at all."""
    names = ["start", "x", "y"][: source.randrange(1, 4)]
    symbols = [*LETTERS, *names]

    def alternative() -> list[str]:
        return [source.choice(symbols) for _ in range(source.randrange(4))]

    return {name: [alternative() for _ in range(source.randrange(1, 4))] for name in names}


def written(rules: Rules) -> str:
    """Returns rules in Lark's syntax."""
    lines = []
    for name, alternatives in rules.items():
        texts = {" ".join(f'"{s}"' if s in LETTERS else s for s in one) for one in alternatives}
        lines.append(f"{name}: {' | '.join(sorted(texts))}")
    return "\n".join(lines)


def short_texts(rules: Rules, longest: int, start: str = "start") -> set[str]:
    """Returns the texts of a rule with so many letters at most, rule by rule until all is in."""
    found: dict[str, set[str]] = {name: set() for name in rules} | {one: {one} for one in LETTERS}
    while True:
        before = sum(map(len, found.values()))
        for name, alternatives in rules.items():
            for one in alternatives:
                texts = {""}
                for symbol in one:
                    texts = {a + b for a in texts for b in found[symbol] if len(a + b) <= longest}
                found[name] |= texts
        if sum(map(len, found.values())) == before:
            return found[start]


@dataclass(frozen=True)
class Rows:
    """Rows over a few tokens, an end and padding behind them."""

    tokens: tuple[str, ...]
    has_ends: bool = True

    @property
    def end(self) -> int:
        return len(self.tokens)

    @property
    def pad(self) -> int:
        return len(self.tokens) + 1

    def row(self, grammar: Grammar, **options: int) -> FreeRow:
        """Returns what asks about rows of a grammar over these tokens."""
        each = [*(one.encode() for one in self.tokens), b"", b""]
        begins = np.cumsum([0, *map(len, each)])
        data = np.frombuffer(b"".join(each), dtype=np.uint8)
        ends = Ends((self.end,), (self.pad,)) if self.has_ends else Ends(())
        texts = TokenTexts(Spellings(data, begins, False), ends, frozenset())
        return FreeRow(FreeLanguage(grammar.network, texts), **options)

    def text(self, row: Sequence[int]) -> str | None:
        """Returns the text of a full row, None where something but padding is behind its end."""
        stop = next((at for at, one in enumerate(row) if one >= self.end), len(row))
        behind = row[stop:]
        if behind and (not self.has_ends or behind[0] != self.end or min(behind) < self.end):
            return None
        return "".join(self.tokens[one] for one in row[:stop])

    def fillings(self, row: Sequence[int], texts: set[str]) -> list[list[int]]:
        """Returns the fillings of a row's holes whose text is one of some."""
        every = range(len(self.tokens) + 2)
        choices = [every if one == OPEN else (one,) for one in row]
        return [list(one) for one in itertools.product(*choices) if self.text(one) in texts]

    def random_row(self, source: random.Random, length: int) -> list[int]:
        """Returns a row with holes, whose end if it has one may come early."""
        row = [source.randrange(len(self.tokens)) for _ in range(length)]
        stop = (
            source.randrange(1, length + 1) if self.has_ends and source.random() < 0.4 else length
        )
        row[stop:] = [self.end, *[self.pad] * length][: length - stop]
        share = source.choice([0.3, 0.6, 0.9])
        return [OPEN if source.random() < share else one for one in row]

    def pattern(self, row: Sequence[int]) -> re.Pattern[str]:
        """Returns what a text must match if gaps may be of any length.

        Only of rows without any end or padding in them.
        """
        parts = itertools.groupby(row, lambda one: one == OPEN)
        found = [
            "(.+)" if is_gap else re.escape("".join(self.tokens[one] for one in group))
            for is_gap, group in parts
        ]
        if self.has_ends and row and row[-1] == OPEN:
            found[-1] = "(.*)"
        return re.compile("".join(found))
