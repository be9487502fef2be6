"""Tokens that the logits of a column are kept to, where a host writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.language import Language

_FEW = 4096  # tokens up to which they are written one by one
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Bound:
    """Tokens that logits are kept to, in the form that reads the least of them."""

    allowed: NDArray[np.int64] | None = None  # where they are few
    barred: NDArray[np.int64] | None = None  # where these are
    most: NDArray[np.float32] | None = None  # (V,) the largest logit of each token, else

    def keep(self, logits: NDArray[Any], into: NDArray[Any]) -> None:
        """Writes logits (V,) of one column, of which others are -inf; both may be the same."""
        if self.allowed is not None:
            values = logits[self.allowed]
            into.fill(-np.inf)
            into[self.allowed] = values
        elif self.most is not None:
            np.minimum(logits, self.most, out=into)
        else:
            if into is not logits:
                into[:] = logits
            into[self.barred] = -np.inf


def bound_of(language: Language, classes: NDArray[np.bool_]) -> Bound:
    """Returns the bound of the tokens of some classes (K,)."""
    num_allowed, size = int(language.sizes[classes].sum()), len(language.automaton.class_of)
    few = num_allowed <= size - num_allowed
    which = np.flatnonzero(classes == few)
    tokens = np.concatenate([_NONE, *(language.members[k] for k in which)])
    if len(tokens) <= _FEW:
        return Bound(allowed=tokens) if few else Bound(barred=tokens)
    most = np.full(size, -np.inf if few else np.inf, np.float32)
    most[tokens] = np.inf if few else -np.inf
    return Bound(most=most)


ALL = Bound(barred=_NONE)
