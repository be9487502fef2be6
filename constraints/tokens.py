"""From an automaton over bytes to one over tokens, tokens that act alike in one class.

Each prefix of a token acts on states: it leads each to another, or nowhere. Few such actions are
different ones, whatever the size of the vocabulary, so they are numbered and worked out once: all
tokens advance by a byte together, and a pair of action and byte is looked at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dllm.constraints.automaton import DEAD, ENDLESS, NEVER, ByteAutomaton, TokenAutomaton
from dllm.constraints.regular.determinise import TooLargeError
from dllm.constraints.vocabulary import Ends, Spellings, Vocabulary

_LARGEST = 2**26  # entries of all actions: 256 MB
_NOWHERE, _STAY = 0, 1  # the first actions


def token_automaton(automaton: ByteAutomaton, vocabulary: Vocabulary, ends: Ends) -> TokenAutomaton:
    """Returns the automaton over tokens whose texts an automaton accepts.

    Any split of a text into tokens is accepted. Raises TooLargeError where tokens act in too many
    ways, and ValueError where a token of `ends` is not in the vocabulary.
    """
    spellings = vocabulary.spellings
    if spellings.drops_space:
        automaton = _with_a_space(automaton)
    known = len(spellings.begins) - 1
    size = max(known, ends.vocab_size or 0, *(1 + token for token in _all(ends)), 1)
    if ends.vocab_size is not None and size > ends.vocab_size:
        raise ValueError(
            f"the tokenizer and its ends have {size} tokens, the model vocab_size={ends.vocab_size}"
        )
    actions, action_of = _actions(automaton, spellings)
    class_of = np.zeros(size, dtype=np.int32)
    class_of[:known] = action_of
    class_of[_all(ends)] = NEVER  # whatever text they stand for
    return _ended(*_trimmed(actions.T, class_of, automaton), ends)


def _all(ends: Ends) -> list[int]:
    return [*ends.eos_token_ids, *ends.pad_token_ids]


def _with_a_space(automaton: ByteAutomaton) -> ByteAutomaton:
    """Returns the automaton of texts from which the decoder takes a space that they begin with."""
    first = automaton.table[automaton.start].copy()
    first[ord(" ")] = automaton.start
    table = np.vstack([automaton.table, first])
    accepting = np.append(automaton.accepting, automaton.accepting[automaton.start])
    return ByteAutomaton(table, accepting, len(table) - 1)


def _actions(
    automaton: ByteAutomaton, spellings: Spellings
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns all actions, (A, Q) next state of each state, and the action of each token, (V,)."""
    columns, byte_class = _alike(automaton.table)
    states, classes = automaton.num_states, columns.shape[1]
    # DEAD is the last row of the table: -1 leads to itself.
    table = np.vstack([columns, np.full((1, classes), DEAD, dtype=np.int32)])
    held = _Numbered(states)
    lengths = np.diff(spellings.begins)
    action_of = np.where(lengths > 0, _STAY, _NOWHERE).astype(np.int32)
    active, place = np.flatnonzero(lengths > 0), 0
    while len(active):
        byte = byte_class[spellings.text[spellings.begins[active] + place]]
        pairs, where = np.unique(
            action_of[active].astype(np.int64) * classes + byte, return_inverse=True
        )
        before, byte = np.divmod(pairs, classes)
        # A few megabytes at a time.
        step = max(2**20 // states, 1)
        numbers = [
            held.number(table[held.rows(before[i : i + step]), byte[i : i + step, None]])
            for i in range(0, len(pairs), step)
        ]
        action_of[active] = np.concatenate(numbers)[where]
        place += 1
        active = active[(lengths[active] > place) & (action_of[active] != _NOWHERE)]
    return held.all(), action_of


class _Numbered:
    """Different actions, numbered in the order in which they are found."""

    def __init__(self, states: int) -> None:
        self._table = np.empty((64, states), dtype=np.int32)
        self._numbers: dict[bytes, int] = {}
        self.number(np.stack([np.full(states, DEAD), np.arange(states)]).astype(np.int32))

    def all(self) -> NDArray[np.int32]:
        """Returns all actions, (A, Q)."""
        return self._table[: len(self._numbers)]

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Returns the actions of numbers."""
        return self._table[numbers]

    def number(self, actions: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the number of each action, (N,), of which those not seen before are new."""
        found = np.empty(len(actions), dtype=np.int32)
        for place, action in enumerate(actions):
            key = action.tobytes()
            known = self._numbers.get(key)
            if known is None:
                known = self._numbers[key] = len(self._numbers)
                self._keep(known, action)
            found[place] = known
        return found

    def _keep(self, number: int, action: NDArray[np.int32]) -> None:
        if number == len(self._table):
            if 2 * self._table.size > _LARGEST:
                raise TooLargeError(
                    f"the tokens act on its {self._table.shape[1]} states in more than {number} "
                    "ways: allow fewer repetitions"
                )
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[number] = action


def _alike(table: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Returns the different columns of a table, and which of them each column is."""
    numbers: dict[bytes, int] = {}
    columns = np.ascontiguousarray(table.T)
    which = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in columns])
    _, first = np.unique(which, return_index=True)
    return table[:, first], which


def _trimmed(
    table: NDArray[np.int32], class_of: NDArray[np.int32], automaton: ByteAutomaton
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]:
    """Returns table, classes, accepting and shortest without the states that tokens do not use.

    State 0 is the start. A byte inside a token may lead to a state that no token ends in.
    """
    used, first = np.unique(class_of, return_inverse=True)
    table = table[:, used]
    after = [set(np.unique(row).tolist()) - {DEAD} for row in table]
    before: list[set[int]] = [set() for _ in after]
    for state, states in enumerate(after):
        for one in states:
            before[one].add(state)
    from_start = _distances(after, [automaton.start])
    shortest = _distances(before, np.flatnonzero(automaton.accepting).tolist())
    useful = (from_start != ENDLESS) & (shortest != ENDLESS)
    order = np.flatnonzero(useful)
    order = order[np.argsort(from_start[order], kind="stable")]  # the start is first
    number = np.full(len(table) + 1, DEAD, dtype=np.int32)
    number[order] = np.arange(len(order))
    columns, which = _alike(np.hstack([np.full((len(order), 1), DEAD), number[table[order]]]))
    class_of = which[1:][first].astype(np.int32)
    return columns.astype(np.int32), class_of, automaton.accepting[order], shortest[order]


def _distances(edges: list[set[int]], first: list[int]) -> NDArray[np.int32]:
    """Returns the fewest edges from any of some states to each, (Q,), ENDLESS for none."""
    found = np.full(len(edges), ENDLESS, dtype=np.int32)
    level, distance = set(first), 0
    while level:
        found[list(level)] = distance
        distance += 1
        level = {one for state in level for one in edges[state] if found[one] == ENDLESS}
    return found


def _ended(
    table: NDArray[np.int32],
    class_of: NDArray[np.int32],
    accepting: NDArray[np.bool_],
    shortest: NDArray[np.int32],
    ends: Ends,
) -> TokenAutomaton:
    """Returns the automaton with the end of the text: a last state, which ends and padding keep."""
    if not ends.eos_token_ids or not len(table):
        return TokenAutomaton(class_of, table, accepting, 0, shortest)
    end, classes = table.shape
    whole = np.full((end + 1, classes + 2), DEAD, dtype=np.int32)
    whole[:end, :classes] = table
    whole[:end, classes][accepting] = end
    whole[end, classes:] = end
    class_of[list(ends.pad_token_ids)] = classes + 1
    class_of[list(ends.eos_token_ids)] = classes
    if classes + 1 not in class_of:
        whole = whole[:, :-1]
    return TokenAutomaton(
        class_of,
        np.ascontiguousarray(whole),
        np.append(accepting, True),
        0,
        np.append(shortest, np.int32(0)),
    )
