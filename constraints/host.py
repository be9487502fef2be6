"""The same sets where the host computes them: what was worked out once is looked up.

Between two steps few columns change, and between two blocks much recurs. So each step from states
to states is kept under both, as are the classes that a column may hold between two sets of states,
and the tokens of such classes. A set of states is its bytes, one a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dllm.constraints.bound import ALL, Bound, bound_of
from dllm.constraints.engine import Tables
from dllm.constraints.lines import RowLanguage

_OPEN = -1  # in the place of a class: any token may stand here
_MOST = 2**26  # bytes of all that is kept, roughly
_BITS = 64  # of a word
States = bytes  # (N,) bool
Classes = NDArray[np.int64]  # (W, B) class that stands at each column of each row, or _OPEN


@dataclass(frozen=True, eq=False)
class Held:
    """What one column may hold."""

    classes: NDArray[np.bool_]  # (B, K)
    counts: NDArray[np.float32]  # (B,) tokens of these classes


def on_host(tables: Tables) -> bool:
    """Whether tensors are in the memory of the host, which may read them without waiting."""
    return tables.device.type == "cpu"


class Host:
    """The languages of a batch of rows, and what was worked out about them."""

    def __init__(self, tables: Tables, rows: Sequence[RowLanguage | None]) -> None:
        lines = self.lines = tables.lines
        self.tables, self.rows = tables, rows
        self._last = np.flatnonzero(np.diff(lines.row_of, append=-1))  # each row's dead state
        # In the width that an index has, or they would be widened at each use.
        self._sources, self._targets = lines.sources.astype(np.intp), lines.targets.astype(np.intp)
        # Rows and classes that any arrow can be taken by.
        self._bags = np.flatnonzero(np.diff(lines.bags, append=len(lines.label_arrows)))
        self._steps: dict[tuple[bool, States, bytes], States] = {}
        self._between: dict[tuple[States, States], Held] = {}
        self._bounds: dict[tuple[int, bytes], Bound] = {}
        self._spent = 0

    def end(self, columns: NDArray[np.int64]) -> States:
        """Returns the states from which what stands behind columns (B, W) is accepted."""
        lines = self.lines
        left = np.minimum(np.maximum(lines.stop - columns[:, -1] - 1, 0), lines.tail_last)
        return lines.tails[lines.tail_of + left[lines.row_of] * lines.stride[:-1]].tobytes()

    def read(
        self,
        entry: Tensor,
        tokens: Tensor,
        columns: Tensor,
        masked: Tensor,
        asked: Tensor | None = None,
    ) -> OnHost:
        """Returns what the columns (B, W) of a window may hold, as `Tables.read` does."""
        states = np.zeros(len(self.lines.row_of) + 1, np.bool_)
        states[entry.numpy()] = True
        inside = self.inside(columns.numpy())
        classes = self.classes(tokens, masked, inside)
        before, after = [states[:-1].tobytes()], [self.end(columns.numpy())]
        for column in classes:
            before.append(self.ahead(before[-1], column))
        for column in classes[::-1]:
            after.append(self.behind(after[-1], column))
        wanted = inside if asked is None else inside & asked.numpy()
        return OnHost(self, inside, wanted, classes, before, after[::-1])

    def inside(self, columns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which columns (B, W) belong to what their row's language is about."""
        lines = self.lines
        begun = columns >= lines.start[:, None]
        return begun & (columns < lines.stop[:, None]) & ~self.free[:, None]

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which rows have no language, (B,)."""
        return self.lines.free

    def classes(self, tokens: Tensor, masked: Tensor, inside: NDArray[np.bool_]) -> Classes:
        """Returns what stands at each column; arguments are (B, W)."""
        found = self.lines.classes[self.lines.language_of[:, None], tokens.numpy()]
        found[masked.numpy()] = _OPEN
        found = np.where(inside, found, self.lines.stay[:, None])
        found[self.free] = _OPEN  # of no state: what stands there makes no other key
        return np.ascontiguousarray(found.T)

    def ahead(self, now: States, column: NDArray[np.int64]) -> States:
        """Returns the states behind a column (B,), from those before it."""
        key = (True, now, column.tobytes())
        found = self._steps.get(key)
        return self._kept(key, self._ahead(now, column)) if found is None else found

    def behind(self, later: States, column: NDArray[np.int64]) -> States:
        """Returns the states before a column (B,) from which one of those behind it is reached."""
        key = (False, later, column.tobytes())
        found = self._steps.get(key)
        return self._kept(key, self._behind(later, column)) if found is None else found

    def joined(self, before: States, after: States) -> NDArray[np.bool_]:
        """Returns which rows have a state in both sets, or no language, (B,)."""
        both = np.frombuffer(before, np.bool_) & np.frombuffer(after, np.bool_)
        found = self.free.copy()
        found[self.lines.row_of[both]] = True
        return found

    def between(self, pairs: list[tuple[States, States]]) -> list[Held]:
        """Returns what columns may hold, of each the states before and behind it."""
        found = {pair: self._between.get(pair) for pair in pairs}
        new = [pair for pair, held in found.items() if held is None]
        for first in range(0, len(new), _BITS):
            some = new[first : first + _BITS]
            made = dict(zip(some, self._joining(some), strict=True))
            self._spend(len(some) * (2 * len(self.lines.row_of) + self.lines.sizes.size))
            self._between |= made
            found |= made
        return [held for pair in pairs if (held := found[pair]) is not None]

    def bound(self, row: int, held: Held) -> Bound:
        """Returns what keeps logits of a row to what a column may hold."""
        one = self.rows[row]
        assert one is not None
        language = one.language
        classes = held.classes[row, : len(language.members)]
        key = (id(language), classes.tobytes())
        found = self._bounds.get(key)
        if found is None:
            found = self._bounds[key] = bound_of(language, classes)
            self._spend(sum(part.nbytes for part in vars(found).values() if part is not None))
        return found

    def _ahead(self, now: States, column: NDArray[np.int64]) -> States:
        lines, states = self.lines, np.frombuffer(now, np.bool_)
        opened, leaving, found = column == _OPEN, states, np.zeros(len(states), np.bool_)
        num_open = np.count_nonzero(opened)
        if num_open < len(opened):
            of_state = opened[lines.row_of]
            leaving = states & of_state
            (rest,) = (states > of_state).nonzero()
            found[self._after_token(rest, column)] = True
            found[self._last] = False
        if num_open:
            found[self._targets[leaving[self._sources]]] = True
        return found.tobytes()

    def _behind(self, later: States, column: NDArray[np.int64]) -> States:
        lines, states = self.lines, np.frombuffer(later, np.bool_)
        opened, found = column == _OPEN, np.zeros(len(states), np.bool_)
        num_open = np.count_nonzero(opened)
        if num_open:
            found[self._sources[states[self._targets]]] = True
        if num_open < len(opened):
            (rest,) = (~opened[lines.row_of]).nonzero()
            found[rest] = states[self._after_token(rest, column)]
        return found.tobytes()

    def _after_token(self, states: NDArray[np.int64], column: NDArray[np.int64]) -> Classes:
        """Returns where states (n,) go by the tokens that stand at a column."""
        lines = self.lines
        places = column[lines.row_of[states]] * lines.stride[states] + lines.pointer[states]
        found: Classes = lines.table[places] + lines.offset[states]
        return found

    def _joining(self, pairs: list[tuple[States, States]]) -> list[Held]:
        """Returns what `Tables.between` does, of up to 64 pairs at once: each has a bit."""
        lines = self.lines
        before, after = (_packed([pair[side] for pair in pairs]) for side in (0, 1))
        taken = before[self._sources] & after[self._targets]
        words = np.zeros(lines.sizes.size, np.uint64)
        if len(self._bags):
            first = lines.bags[self._bags]
            words[self._bags] = np.bitwise_or.reduceat(taken[lines.label_arrows], first)
        bits = np.unpackbits(words.view(np.uint8).reshape(-1, 8), 1, len(pairs), "little")
        sets = bits.T.astype(np.bool_).reshape(-1, *lines.sizes.shape) | self.free[:, None]
        counts = np.einsum("pbk,bk->pb", sets, lines.sizes)
        return [Held(*one) for one in zip(sets, counts, strict=True)]

    def _kept(self, key: tuple[bool, States, bytes], found: States) -> States:
        self._spend(len(key[1]) + len(key[2]) + len(found))
        self._steps[key] = found
        return found

    def _spend(self, num_bytes: int) -> None:
        """Forgets all before it is too much."""
        self._spent += num_bytes
        if self._spent > _MOST:
            for kept in (self._steps, self._between, self._bounds):
                kept.clear()
            self._spent = num_bytes


def _packed(sets: list[States]) -> NDArray[np.uint64]:
    """Returns of each state in which of up to 64 sets it is, a bit a set, (N,)."""
    joined = np.frombuffer(b"".join(sets), np.bool_).reshape(len(sets), -1)
    packed = np.zeros((joined.shape[1], 8), np.uint8)
    packed[:, : -(-len(sets) // 8)] = np.packbits(joined, 0, "little").T
    words: NDArray[np.uint64] = packed.view(np.uint64)[:, 0]
    return words


@dataclass(frozen=True, eq=False)
class OnHost:
    """What `OnDevice` is, from what a host keeps."""

    host: Host
    inside: NDArray[np.bool_]  # (B, W)
    asked: NDArray[np.bool_]  # (B, W) columns inside of which somebody reads the logits
    classes: Classes  # what stands there
    before: list[States]  # (W + 1)
    after: list[States]  # (W + 1)

    @cached_property
    def held(self) -> dict[int, Held]:
        """What each column may hold that any row is asked about."""
        (columns,) = self.asked.any(0).nonzero()
        pairs = [(self.before[column], self.after[column + 1]) for column in columns.tolist()]
        return dict(zip(columns.tolist(), self.host.between(pairs), strict=True))

    @cached_property
    def allowed(self) -> Tensor:
        """The classes of tokens that each column may hold, (B, W, K) bool."""
        lines = self.host.lines
        sets = np.ones((*self.asked.shape, lines.sizes.shape[1]), np.bool_)
        for column, held in self.held.items():
            sets[:, column] = held.classes
        return torch.from_numpy(sets | ~self.asked[..., None])

    @property
    def single(self) -> Tensor:
        """Which columns may hold one token alone, (B, W) bool."""
        found = np.zeros(self.asked.shape, np.bool_)
        for column, held in self.held.items():
            found[:, column] = held.counts == 1
        return torch.from_numpy(found & self.asked)

    def hold(self, logits: Tensor, places: Tensor | None, keep: int, spare: bool) -> Tensor:
        """Returns logits (B, w, V) with -inf for what their columns may not hold.

        As `OnDevice.hold`, in their place where nobody else reads them: there is much of them.
        """
        found = logits if spare else torch.empty_like(logits)
        kept, width = logits[..., keep].clone(), range(logits.shape[1])
        for row, (given, into) in enumerate(zip(logits.numpy(), found.numpy(), strict=True)):
            at = width if places is None else places[row].tolist()
            for column, old, line in zip(at, given, into, strict=True):
                if spare and not self.asked[row, column]:
                    continue
                bound = ALL
                if self.asked[row, column]:
                    bound = self.host.bound(row, self.held[column])
                bound.keep(line if spare else old, line)
        found[..., keep] = kept
        return found

    def fits(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Returns which rows can still be filled with other tokens in the window, (B,) bool.

        `masked` (B, W) bool are columns where any may stand. Behind the last column that changes
        all is as it was.
        """
        classes = self.host.classes(tokens, masked, self.inside)
        (changed,) = np.nonzero((classes != self.classes).any(1))
        first, last = (changed[0], changed[-1] + 1) if len(changed) else (0, 0)
        states = self.before[first]
        for column in classes[first:last]:
            states = self.host.ahead(states, column)
        return torch.from_numpy(self.host.joined(states, self.after[last]))
