"""What was worked out about a language where the host computes, kept for all rows and calls.

Between two steps few columns change, and between two blocks, rows and requests much recurs. So each
step from states to states is kept under both, as are the classes that a column may hold between
two sets of states. A set of states is its bytes, one a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.bound import Bounds
from dllm.constraints.language import OPEN, Language
from dllm.constraints.lines import moves_of

_MOST = 2**24  # bytes of all that is kept of a language, roughly
_BITS = 64  # of a word
States = bytes  # (Q + 1,) bool; the last one is dead


@dataclass(frozen=True, eq=False)
class Held:
    """What one column may hold."""

    classes: NDArray[np.bool_]  # (K,)
    key: bytes  # the same
    single: bool  # whether that is one token


class Known:
    """The sets of one language, by states and classes of its own."""

    def __init__(self, language: Language) -> None:
        self.num_classes = language.automaton.num_classes
        self._moves = moves_of(language)  # (K + 1, Q + 1)
        bundles = _bundles(language)
        order = np.argsort(bundles.of_arrow, kind="stable")
        # In the width that an index has, or they would be widened at each use.
        self._sources, self._targets = (
            arrows[order].astype(np.intp) for arrows in (language.sources, language.targets)
        )
        self._begins = np.unique(bundles.of_arrow[order], return_index=True)[1]
        order = np.argsort(bundles.classes, kind="stable")
        self._label_bundles = bundles.of_label[order].astype(np.intp)
        # The classes that any arrow can be taken by, and where the labels of each begin.
        self._classes, self._bags = np.unique(bundles.classes[order], return_index=True)
        self._sizes = language.sizes
        self.bounds = Bounds(language.members)
        self._only: dict[int, States] = {}
        self._ahead: dict[tuple[States, int], States] = {}
        self._behind: dict[tuple[States, int], States] = {}
        self._between: dict[tuple[States, States], Held] = {}
        self._spent = 0

    def only(self, state: int) -> States:
        """Returns the set of one state."""
        found = self._only.get(state)
        if found is None:
            before, after = bytes(state), bytes(self._moves.shape[1] - state - 1)
            found = self._only[state] = before + b"\1" + after
            self._spend(len(found))
        return found

    def ahead(self, now: States, token: int) -> States:
        """Returns the states behind a token of a class, OPEN for any, from those before it.

        The class behind the last one changes no state.
        """
        found = self._ahead.get((now, token))
        if found is not None:
            return found
        states, after = np.frombuffer(now, np.bool_), np.zeros(len(now), np.bool_)
        if token == OPEN:
            after[self._targets[states[self._sources].nonzero()[0]]] = True
        else:
            after[self._moves[token, states.nonzero()[0]]] = True
            after[-1] = False
        return self._kept(self._ahead, now, token, after.tobytes())

    def behind(self, later: States, token: int) -> States:
        """Returns the states from which a token leads to one of those behind it."""
        found = self._behind.get((later, token))
        if found is not None:
            return found
        states = np.frombuffer(later, np.bool_)
        if token == OPEN:
            before = np.zeros(len(later), np.bool_)
            before[self._sources[states[self._targets].nonzero()[0]]] = True
        else:
            before = states.take(self._moves[token])
        return self._kept(self._behind, later, token, before.tobytes())

    def between(self, pairs: Sequence[tuple[States, States]]) -> list[Held]:
        """Returns what columns may hold, of each the states before and behind it."""
        found = {pair: self._between.get(pair) for pair in pairs}
        new = [pair for pair, held in found.items() if held is None]
        for first in range(0, len(new), _BITS):
            some = new[first : first + _BITS]
            made = dict(zip(some, self._joining(some), strict=True))
            self._spend(len(some) * 2 * (len(some[0][0]) + self.num_classes))
            self._between |= made
            found |= made
        return [held for pair in pairs if (held := found[pair]) is not None]

    def _joining(self, pairs: Sequence[tuple[States, States]]) -> list[Held]:
        """Returns what up to 64 columns may hold, at once: each has a bit."""
        before, after = (_packed([pair[side] for pair in pairs]) for side in (0, 1))
        taken = before[self._sources] & after[self._targets]
        words = np.zeros(self.num_classes, taken.dtype)
        if len(self._bags):
            bundles = np.bitwise_or.reduceat(taken, self._begins)
            words[self._classes] = np.bitwise_or.reduceat(bundles[self._label_bundles], self._bags)
        bits = np.unpackbits(
            words.view(np.uint8).reshape(len(words), -1), 1, len(pairs), bitorder="little"
        )
        sets = bits.T.astype(np.bool_)
        single = (sets @ self._sizes) == 1
        return [Held(one, one.tobytes(), bool(of)) for one, of in zip(sets, single, strict=True)]

    def _kept(
        self, where: dict[tuple[States, int], States], given: States, token: int, found: States
    ) -> States:
        self._spend(len(given) + len(found))
        where[given, token] = found
        return found

    def _spend(self, num_bytes: int) -> None:
        """Forgets all before it is too much."""
        self._spent += num_bytes
        if self._spent > _MOST:
            for kept in (self._only, self._ahead, self._behind, self._between):
                kept.clear()
            self._spent = num_bytes


@dataclass(frozen=True, eq=False)
class _Bundles:
    """Arrows that can be taken by the same classes: many are alike, as all inside a text are."""

    of_arrow: NDArray[np.int64]  # (E,)
    of_label: NDArray[np.int64]  # (m,) the bundles of all labels
    classes: NDArray[np.int64]  # (m,)


def _bundles(language: Language) -> _Bundles:
    order = np.lexsort((language.label_classes, language.label_pairs))
    labels = language.label_classes[order].astype(np.int64)
    begins = np.flatnonzero(np.diff(language.label_pairs[order], prepend=-1)).tolist()
    raw, size = labels.tobytes(), labels.itemsize
    found: dict[bytes, int] = {}
    of_arrow = [
        found.setdefault(raw[size * first : size * last], len(found))
        for first, last in pairwise([*begins, len(labels)])
    ]
    counts = [len(classes) // size for classes in found]
    return _Bundles(
        np.array(of_arrow, np.int64),
        np.repeat(np.arange(len(found)), counts),
        np.frombuffer(b"".join(found), np.int64),
    )


def joined(before: States, after: States) -> bool:
    """Returns whether a state is in both sets."""
    return bool((np.frombuffer(before, np.bool_) & np.frombuffer(after, np.bool_)).any())


def known_of(language: Language) -> Known:
    """Returns what is known about a language, as long as somebody has the language."""
    if language not in _KNOWN:
        _KNOWN[language] = Known(language)
    return _KNOWN[language]


_KNOWN: WeakKeyDictionary[Language, Known] = WeakKeyDictionary()


def _packed(sets: Sequence[States]) -> NDArray[Any]:
    """Returns of each state in which of up to 64 sets it is, a bit a set, (Q + 1,).

    Numbers are as wide as they must be: most steps ask for a few sets.
    """
    num_bytes = next(size for size in (1, 2, 4, 8) if 8 * size >= len(sets))
    wide = np.frombuffer(b"".join(sets), np.bool_).reshape(len(sets), -1)
    packed = np.zeros((wide.shape[1], num_bytes), np.uint8)
    packed[:, : -(-len(sets) // 8)] = np.packbits(wide, 0, bitorder="little").T
    return packed.view(f"u{num_bytes}")[:, 0]
