"""The smallest deterministic automaton of a language, by splitting classes of states."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.automaton import DEAD


def minimal(
    table: NDArray[np.int32], accepting: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Returns the table and accepting states of the minimal automaton; its start is state 0.

    `table` (Q, C) holds next states, DEAD for none; all its states are reachable from state 0.
    States from which nothing is accepted go, all of them if the language is empty.
    """
    useful = leading_to(table, accepting)
    if not len(table) or not useful[0]:
        return np.empty((0, table.shape[1]), dtype=np.int32), np.empty(0, dtype=np.bool_)
    number = np.where(useful, useful.cumsum() - 1, DEAD)
    table = np.append(number, DEAD)[table[useful]].astype(np.int32)
    accepting = accepting[useful]
    _, first, block = np.unique(_blocks(table, accepting), return_index=True, return_inverse=True)
    # Numbered in the order of the first state of each, so that the start stays state 0.
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    first = first[order]
    renamed = np.append(rank[block], np.int32(DEAD))
    return renamed[table[first]], accepting[first]


def leading_to(table: NDArray[np.int32], accepting: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns whether each state leads to an accepting one, (Q,)."""
    before = _before(table)
    found = accepting.copy()
    waiting = np.flatnonzero(accepting).tolist()
    while waiting:
        for state in before[waiting.pop()]:
            if not found[state]:
                found[state] = True
                waiting.append(state)
    return found


def _before(table: NDArray[np.int32]) -> list[set[int]]:
    """Returns the states that have each state as a next one."""
    before: list[set[int]] = [set() for _ in table]
    for state, row in enumerate(table.tolist()):
        for after in set(row):
            if after != DEAD:
                before[after].add(state)
    return before


def _blocks(table: NDArray[np.int32], accepting: NDArray[np.bool_]) -> list[int]:
    """Returns the block of each state, where states of one block accept the same texts.

    As Hopcroft's algorithm, looks again only at states before one that has left its block, which
    the largest part of a block never does: Q log Q looks at a row. In a round all rows are looked
    at before any state is moved, so that the states of a block not looked at still agree.
    """
    rows, before = table.tolist(), _before(table)
    block = [int(one) for one in accepting]
    members: list[set[int]] = [
        {state for state, own in enumerate(block) if own == kind} for kind in (0, 1)
    ]
    changed = set(range(len(rows)))
    while changed:
        splits = []
        by_block: defaultdict[int, list[int]] = defaultdict(list)
        for state in changed:
            by_block[block[state]].append(state)
        for own, states in by_block.items():
            groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
            for state in states:
                groups[_signature(rows[state], block)].append(state)
            splits.append((own, _leaving(members[own], states, groups, (rows, block))))
        changed = set()
        for own, leaving in splits:
            for group in leaving:
                members[own].difference_update(group)
                members.append(set(group))
                for state in group:
                    block[state] = len(members) - 1
                    changed |= before[state]
    return block


def _signature(row: list[int], block: list[int]) -> tuple[int, ...]:
    return tuple([DEAD if after == DEAD else block[after] for after in row])


def _leaving(
    members: set[int],
    looked_at: list[int],
    groups: dict[tuple[int, ...], list[int]],
    now: tuple[list[list[int]], list[int]],
) -> list[list[int]]:
    """Returns the groups of states that leave their block: all but the largest."""
    sizes = {signature: len(group) for signature, group in groups.items()}
    unseen = members.difference(looked_at) if len(groups) > 1 or sizes else set()
    if unseen:
        rows, block = now
        own = _signature(rows[next(iter(unseen))], block)
        sizes[own] = sizes.get(own, 0) + len(unseen)
    largest = max(sizes, key=lambda one: sizes[one])
    if unseen and own != largest:
        groups[own] = [*groups.get(own, ()), *unseen]
    return [group for signature, group in groups.items() if signature != largest]
