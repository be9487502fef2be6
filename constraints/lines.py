"""The languages of a batch of rows as flat arrays, one row behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.automaton import DEAD
from dllm.constraints.language import Language

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowLanguage:
    """What one row must be: a string of a language in its columns from `start` to `stop`."""

    language: Language
    start: int  # canvas column of the first token
    stop: int  # behind the last
    tails: NDArray[np.bool_]  # (m, Q) of `Language.tails`, of what stands there before any step


@dataclass(frozen=True, eq=False)
class Lines:
    """What `Tables` has as tensors, with as many states as all rows have together, N.

    A state's number is its place in this line; the place behind the last one is nowhere.
    """

    free: NDArray[np.bool_]  # (B,) rows without a language
    start: Ints  # (B,)
    stop: Ints  # (B,)
    first: Ints  # (B,) state before the first token; N: of a row without a language
    language_of: Ints  # (B,)
    row_of: Ints  # (N,)
    offset: Ints  # (N + 1,) the first state of the same row
    pointer: Ints  # (N + 1,) where the state's next states begin in `table`
    table: NDArray[np.int32]  # next states, counted within the row, by class
    sources: Ints  # (E,)
    targets: Ints  # (E,)
    label_arrows: Ints  # (n,) arrows of the labels, of one class of a row behind the other
    bags: Ints  # (B * K,) where the labels of a row's class begin
    classes: Ints  # (A, V)
    tails: NDArray[np.bool_]  # flat
    tail_of: Ints  # (N,) where the state stands in the first of its row's tails
    tail_stride: Ints  # (N,) states of the row
    tail_last: Ints  # (B,) number of the row's last tail
    num_classes: int  # K, the most of any language

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name."""
        return {name: value for name, value in vars(self).items() if name != "num_classes"}


def lines_of(rows: Sequence[RowLanguage | None]) -> Lines:
    """Returns the arrays of a batch; None is a row without a language."""
    held = [(place, row) for place, row in enumerate(rows) if row is not None]
    distinct = list({id(row.language): row.language for _, row in held}.values())
    number = {id(language): place for place, language in enumerate(distinct)}
    num_classes = max((one.automaton.num_classes for one in distinct), default=1)
    tables = [one.table.ravel() for one in distinct]
    begins = [0, *accumulate(map(len, tables))]
    counts = [row.language.automaton.num_states for _, row in held]
    states = [0, *accumulate(counts)]
    arrows = [0, *accumulate(len(row.language.sources) for _, row in held)]
    lists = list({id(row.tails): row.tails for _, row in held}.values())
    list_begins = dict(
        zip(map(id, lists), [0, *accumulate(one.size for one in lists)], strict=False)
    )
    bags = [row.language.label_classes + place * num_classes for place, row in held]
    labels = [
        row.language.label_pairs + arrow for (_, row), arrow in zip(held, arrows, strict=False)
    ]
    order = np.argsort(_joined(bags), kind="stable")
    each = list(zip(held, counts, states, strict=False))
    by_row = {row: state + of.language.automaton.start for (row, of), _, state in each}
    return Lines(
        free=np.array([row is None for row in rows]),
        start=np.array([row.start if row else 0 for row in rows]),
        stop=np.array([row.stop if row else 0 for row in rows]),
        first=np.array([by_row.get(place, states[-1]) for place in range(len(rows))]),
        language_of=np.array([number[id(row.language)] if row else 0 for row in rows]),
        row_of=_joined([np.full(count, place) for (place, _), count, _ in each]),
        offset=_joined([np.full(count, state) for _, count, state in each], 0),
        pointer=_joined(
            [
                begins[number[id(of.language)]] + np.arange(count) * of.language.table.shape[1]
                for (_, of), count, _ in each
            ],
            begins[-1],
        ),
        table=np.concatenate([*tables, np.full(num_classes, DEAD, np.int32)]),
        sources=_joined([of.language.sources + state for (_, of), _, state in each]),
        targets=_joined([of.language.targets + state for (_, of), _, state in each]),
        label_arrows=_joined(labels)[order],
        bags=_begins(_joined(bags), len(rows) * num_classes),
        classes=_classes(distinct),
        tails=np.concatenate([*(one.ravel() for one in lists), np.zeros(0, bool)]),
        tail_of=_joined([list_begins[id(of.tails)] + np.arange(n) for (_, of), n, _ in each]),
        tail_stride=_joined([np.full(count, count) for count in counts]),
        tail_last=np.array([len(row.tails) - 1 if row else 0 for row in rows]),
        num_classes=num_classes,
    )


def _joined(parts: Sequence[Ints], *last: int) -> Ints:
    return np.concatenate([*parts, np.array(last, np.int64)]).astype(np.int64)


def _begins(bags: Ints, num_bags: int) -> Ints:
    """Returns where each bag begins in the sorted line of all, (num_bags,)."""
    ends = np.bincount(bags, minlength=num_bags).cumsum()
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]])


def _classes(languages: Sequence[Language]) -> Ints:
    """Returns the class of every token in each language, (A, V)."""
    found = [one.automaton.class_of for one in languages] or [np.zeros(1, np.int32)]
    return np.stack(found).astype(np.int64)
