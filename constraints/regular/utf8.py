"""The bytes of characters: the smallest graph that spells a set of them in UTF-8."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache

from dllm.constraints.regular.expression import LAST, Ranges

Moves = tuple[tuple[int, int, int], ...]


@lru_cache(maxsize=1024)
def utf8_of(ranges: Ranges) -> tuple[tuple[int, Moves], ...]:
    """Returns nodes of the smallest graph that spells characters in UTF-8, those behind first.

    A node is its number, and its moves as first byte, last byte and node; node 0 is the end of a
    character, node -1 its beginning. Equal tails of different characters are one node.
    """
    tails = _Tails()
    first: list[tuple[int, int, int]] = []
    # Bytes of a character, its least and largest code point, the bits of its first byte.
    for length, low, high, lead in (
        (1, 0, 0x7F, 0),
        (2, 0x80, 0x7FF, 0xC0),
        (3, 0x800, 0xFFFF, 0xE0),
        (4, 0x10000, LAST, 0xF0),
    ):
        inside = tuple((max(a, low), min(b, high)) for a, b in ranges if a <= high and b >= low)
        first += tails.split(inside, length - 1, lead)
    return (*((number, moves) for moves, number in tails.nodes.items()), (-1, tuple(first)))


class _Tails:
    """The continuation bytes of characters, equal ones once."""

    def __init__(self) -> None:
        self.nodes: dict[Moves, int] = {}
        self._known: dict[tuple[Ranges, int], int] = {}

    def split(self, ranges: Ranges, depth: int, lead: int) -> Moves:
        """Returns the moves on a byte `lead | x`, where `depth` bytes of six bits follow."""
        size = 64**depth
        parts: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for low, high in ranges:
            for head in range(low // size, high // size + 1):
                rest = (max(low - head * size, 0), min(high - head * size, size - 1))
                parts[lead | head].append(rest)
        merged: list[tuple[int, int, int]] = []
        for byte, inside in parts.items():
            to = self._node(tuple(inside), depth)
            if merged and merged[-1][1:] == (byte - 1, to):
                merged[-1] = (merged[-1][0], byte, to)
            else:
                merged.append((byte, byte, to))
        return tuple(merged)

    def _node(self, ranges: Ranges, depth: int) -> int:
        if depth == 0:
            return 0
        if (ranges, depth) not in self._known:
            moves = self.split(ranges, depth - 1, 0x80)
            self._known[ranges, depth] = self.nodes.setdefault(moves, len(self.nodes) + 1)
        return self._known[ranges, depth]
