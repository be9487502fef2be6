"""Rows of a store that become fewer, move, and become more again."""

from __future__ import annotations

import torch

from dllm.state.store import KVStore, StoreShape


def filled(num_rows: int, every: int = 1) -> KVStore:
    """Returns a store of two layers and three columns; row b holds b, or 100 + b as a value."""
    store = KVStore(StoreShape(num_rows * every, 3, 1, 1), torch.float32, [torch.device("cpu")] * 2)
    numbers = torch.arange(num_rows * every).repeat_interleave(3).float()[:, None, None]
    for keys, values in zip(store.keys, store.values, strict=True):
        keys[:-1], values[:-1] = numbers, 100 + numbers
    store.features = {1: numbers[::3].expand(-1, 3, 2).clone()}
    store.kept = [None, torch.eye(num_rows * every, 3, dtype=torch.bool)]
    return store


def rows_of(store: KVStore) -> list[list[float]]:
    """Returns what each row of the first layer holds, checked to be in all other places too."""
    keys = store.keys[0][:-1].view(store.shape.num_rows, 3)
    for other, more in ((store.keys[1], 0), (store.values[0], 100), (store.values[1], 100)):
        assert torch.equal(other[:-1].view_as(keys), keys + more)
    found: list[list[float]] = keys.tolist()
    return found


def test_rows_that_stay_are_not_copied_and_others_take_free_seats() -> None:
    store = filled(5)
    memory = store.keys[0].data_ptr()
    store.reseat(torch.tensor([0, 4, 2]), (1,))
    assert rows_of(store) == [[0] * 3, [4] * 3, [2] * 3]
    assert store.features[1][:, 0, 0].tolist() == [0, 4, 2]
    kept = store.kept[1]
    assert kept is not None
    assert kept.int().tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert store.keys[0].data_ptr() == memory
    assert store.scratch == 9
    assert store.slots(torch.tensor([[0, -1], [1, 2], [2, 0]])).tolist() == [[0, 9], [4, 5], [8, 6]]


def test_there_is_room_for_as_many_rows_as_at_first() -> None:
    store = filled(4)
    store.reseat(torch.tensor([3]), (0,))
    assert rows_of(store) == [[3] * 3]
    store.reseat(torch.tensor([0, 0, 0, 0]), ())
    assert store.shape.num_rows == 4
    assert store.keys[0].shape[0] == 13
    assert rows_of(store)[0] == [3] * 3


def test_all_variants_of_a_row_move_together() -> None:
    store = filled(3, every=2)
    store.reseat(torch.tensor([2, 1]), (0,), every=2)
    assert rows_of(store) == [[4] * 3, [5] * 3, [2] * 3, [3] * 3]
