"""Which rows of a list are decoded beside each other."""

from __future__ import annotations

import pytest

from dllm.decoding.room import MOST_PADDING, Room


@pytest.mark.parametrize(
    ("under_way", "waiting", "expected"),
    [
        ((), [10, 10, 10, 10], 4),
        ((), [10, 10, 10, 10, 10], 4),  # five of them are more columns than a step has
        ((10,), [10] * 9, 3),
        ((), [40, 40], 1),
        ((), [500, 500], 1),  # a row alone always has its place
        ((12,), [500], 0),
        ((), [9, 10, 10], 3),  # a column of 30 is padding
        ((), [8, 10, 10], 1),  # a fifth of the first two
        ((10, 10), [12], 0),  # four of 36
        ((), [], 0),
    ],
)
def test_rows_enter_while_they_are_few_and_alike(
    under_way: tuple[int, ...], waiting: list[int], expected: int
) -> None:
    assert Room(num_rows=9, num_columns=40).entering(under_way, waiting) == expected


def test_steps_of_a_block_count_its_columns() -> None:
    room = Room(num_rows=5, num_columns=64, width=16)
    assert room.entering((), [200] * 9) == 4
    assert Room(num_rows=3, num_columns=64, width=16).entering((), [200] * 9) == 3


@pytest.mark.parametrize("length", range(1, 400, 7))
def test_rows_beside_each_other_have_little_padding(length: int) -> None:
    waiting = [length + 3 * row for row in range(20)]
    count = Room(20, 10**6).entering((), waiting)
    taken = waiting[:count]
    assert sum(taken) >= (1 - MOST_PADDING) * count * max(taken)
