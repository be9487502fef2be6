"""Tokens that the logits of a column are kept to, where a host writes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW = 4096  # allowed tokens up to which they are copied one by one
_FEW_BARRED = 8192  # barred ones up to which they are written so
_MOST = 2**26  # bytes of the bounds that are kept, of all languages together
_BASES = 4  # bounds of each token that a language's others are told by
_NONE = np.empty(0, np.int64)
_NUMBERS = count()  # of languages


@dataclass(frozen=True, eq=False)
class Bound:
    """Tokens that logits are kept to, in the form that reads the least of them."""

    allowed: NDArray[np.int64] | None = None  # where they are few; else those that `most` bars
    barred: NDArray[np.int64] | None = None  # where these are few; else those that `most` allows
    most: NDArray[np.float32] | None = None  # (V,) the largest logit of each token, else

    @property
    def num_bytes(self) -> int:
        """Memory of its arrays."""
        return sum(one.nbytes for one in vars(self).values() if one is not None)

    def keep(self, logits: NDArray[Any], into: NDArray[Any]) -> None:
        """Writes logits (V,) of one column, of which others are -inf; both may be the same."""
        values = None if self.allowed is None else logits[self.allowed]
        if self.most is not None:
            np.minimum(logits, self.most, out=into)
        elif values is not None:
            into.fill(-np.inf)
        elif into is not logits:
            into[:] = logits
        if values is not None:
            into[self.allowed] = values
        if self.barred is not None:
            into[self.barred] = -np.inf


@dataclass
class Kept:
    """The bounds of all languages that were asked for last, up to `_MOST` bytes."""

    bounds: OrderedDict[tuple[int, bytes], Bound] = field(default_factory=OrderedDict)
    num_bytes: int = 0
    lock: Lock = field(default_factory=Lock)  # calls in several threads ask

    def of(self, key: tuple[int, bytes], made: Callable[[], Bound]) -> Bound:
        """Returns the bound under a key, which is made where there is none."""
        with self.lock:
            found = self.bounds.get(key)
            if found is None:
                found = self.bounds[key] = made()
                self.num_bytes += found.num_bytes
                while self.num_bytes > _MOST and len(self.bounds) > 1:
                    self.num_bytes -= self.bounds.popitem(last=False)[1].num_bytes
            else:
                self.bounds.move_to_end(key)
        return found


_KEPT = Kept()


class Bounds:
    """The bounds of a language's classes, of which all languages keep the last ones asked for."""

    def __init__(self, members: list[NDArray[np.int64]]) -> None:
        self._members, self._sizes = members, np.array([len(one) for one in members])
        self._number = next(_NUMBERS)
        # Bounds of each token, the newest first: sets that are nearly the same read the same one,
        # which is in the processor's cache then.
        self._bases: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []

    def of(self, classes: bytes) -> Bound:
        """Returns the bound of the tokens of some classes, (K,) bool as bytes."""
        key = self._number, classes
        return _KEPT.of(key, lambda: self._made(np.frombuffer(classes, np.bool_)))

    def _made(self, classes: NDArray[np.bool_]) -> Bound:
        allowed, barred = self._sizes[classes].sum(), self._sizes[~classes].sum()
        if allowed <= min(_FEW, barred):
            return Bound(allowed=self._tokens(classes))
        if barred <= _FEW_BARRED:
            return Bound(barred=self._tokens(~classes))
        for most, base in self._bases:
            if self._sizes[classes ^ base].sum() <= _FEW:
                more, less = (self._tokens(some) for some in (classes & ~base, base & ~classes))
                return Bound(more if len(more) else None, less if len(less) else None, most)
        most = np.full(int(allowed + barred), -np.inf, np.float32)
        most[self._tokens(classes)] = np.inf
        self._bases = [(most, classes), *self._bases][:_BASES]
        return Bound(most=most)

    def _tokens(self, classes: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.concatenate([_NONE, *(self._members[k] for k in np.flatnonzero(classes))])


ALL = Bound(barred=_NONE)
