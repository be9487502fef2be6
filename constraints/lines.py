"""The languages of a batch of rows as flat arrays, one row behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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

    A state's number is its place in this line. The last state of each row is one that nothing
    leaves; a class behind the last one stands for no token at all, and changes no state.
    """

    free: NDArray[np.bool_]  # (B,) rows without a language
    start: Ints  # (B,)
    stop: Ints  # (B,)
    first: Ints  # (B,) state before the first token; N: of a row without a language
    language_of: Ints  # (B,)
    stay: Ints  # (B,) the class that changes no state
    row_of: Ints  # (N,)
    offset: Ints  # (N + 1,) the first state of the same row
    stride: Ints  # (N + 1,) states of the row
    pointer: Ints  # (N + 1,) where the state stands among those of class 0 in `table`
    table: NDArray[np.int32]  # next states, counted within the row: of a class one by the other
    sources: Ints  # (E,)
    targets: Ints  # (E,)
    label_arrows: Ints  # (n,) arrows of the labels, of one class of a row behind the other
    label_bags: Ints  # (n,) row times K, and class
    bags: Ints  # (B * K,) where the labels of a row's class begin
    classes: Ints  # (A, V)
    sizes: NDArray[np.float32]  # (B, K)
    tails: NDArray[np.bool_]  # flat
    tail_of: Ints  # (N,) where the state stands in the first of its row's tails
    tail_last: Ints  # (B,) number of the row's last tail


def lines_of(rows: Sequence[RowLanguage | None]) -> Lines:
    """Returns the arrays of a batch; None is a row without a language."""
    held = [(place, row) for place, row in enumerate(rows) if row is not None]
    distinct = list({id(row.language): row.language for _, row in held}.values())
    number = {id(language): place for place, language in enumerate(distinct)}
    num_classes = max((one.automaton.num_classes for one in distinct), default=1)
    tables = [moves_of(one).ravel() for one in distinct]
    begins = [0, *accumulate(map(len, tables))]
    counts = [row.language.automaton.num_states + 1 for _, row in held]
    states = [0, *accumulate(counts)]
    arrows = [0, *accumulate(len(row.language.sources) for _, row in held)]
    lists = {id(row.tails): row.tails for _, row in held}
    lists = {key: np.pad(one, ((0, 0), (0, 1))) for key, one in lists.items()}
    list_ends = accumulate(one.size for one in lists.values())
    list_begins = {key: end - lists[key].size for key, end in zip(lists, list_ends, strict=True)}
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
        stay=np.array([row.language.automaton.num_classes if row else 0 for row in rows]),
        row_of=_joined([np.full(count, place) for (place, _), count, _ in each]),
        offset=_joined([np.full(count, state) for _, count, state in each], 0),
        stride=_joined([np.full(count, count) for count in counts], 0),
        pointer=_joined(
            [begins[number[id(of.language)]] + np.arange(count) for (_, of), count, _ in each],
            begins[-1],
        ),
        table=np.concatenate([*tables, np.zeros(1, np.int32)]),
        sources=_joined([of.language.sources + state for (_, of), _, state in each]).astype(
            np.int32
        ),
        targets=_joined([of.language.targets + state for (_, of), _, state in each]).astype(
            np.int32
        ),
        label_arrows=_joined(labels)[order],
        label_bags=_joined(bags)[order],
        bags=_begins(_joined(bags), len(rows) * num_classes),
        classes=_classes(distinct),
        sizes=_sizes(rows, num_classes),
        tails=np.concatenate([*(one.ravel() for one in lists.values()), np.zeros(0, bool)]),
        tail_of=_joined([list_begins[id(of.tails)] + np.arange(n) for (_, of), n, _ in each]),
        tail_last=np.array([len(row.tails) - 1 if row else 0 for row in rows]),
    )


def moves_of(language: Language) -> NDArray[np.int32]:
    """Returns the next state of each class and state, (K + 1, Q + 1)."""
    states, classes = language.table.shape
    table = np.full((classes + 1, states + 1), states, np.int32)
    table[:classes, :states] = np.where(language.table == DEAD, states, language.table).T
    table[classes] = np.arange(states + 1)
    return table


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


def _sizes(rows: Sequence[RowLanguage | None], num_classes: int) -> NDArray[np.float32]:
    """Returns how many tokens each class of each row's language has, (B, K)."""
    sizes = np.zeros((len(rows), num_classes), np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            sizes[place, : len(row.language.sizes)] = row.language.sizes
    return sizes
