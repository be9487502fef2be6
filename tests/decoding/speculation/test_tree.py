"""Several canvases of a row in one row: which keys each of them sees."""

from __future__ import annotations

import pytest
import torch

from dllm.decoding.speculation.execution import as_tree
from dllm.state.plan import StepPlan


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_canvas_of_a_tree_sees_what_it_would_see_alone(stored: bool, ragged: bool) -> None:
    """In a store of 6 columns, of which columns 2 and 3 are fed; the last row has 5."""
    columns = torch.tensor([[2, 3], [3, 7]]) if stored else torch.arange(6).expand(2, -1)
    length = torch.tensor([6, 5])
    attend = (torch.arange(6) < length[:, None])[:, None] if ragged else None
    head = torch.tensor([[1], [0]])
    tree = as_tree(StepPlan("step", columns, head, 6, attend, columns if stored else None), 3)
    assert tree.positions.tolist() == columns.repeat(1, 3).tolist()
    width = columns.shape[1]
    assert tree.logit_rows.tolist() == [[1, 1 + width, 1 + 2 * width], [0, width, 2 * width]]
    assert tree.attention_mask is not None
    assert tree.attention_mask.shape == (2, 3 * width, tree.shape.num_seen)
    # The canvas and column of each key; those of the store that were fed are the first canvas's.
    own = [(0, column) for column in range(6)] if stored else []
    for row in range(2):
        fresh = [(c, int(col)) for c in range(3) for col in columns[row]]
        keys = own + (fresh[width:] if stored else fresh)
        real = range(int(length[row]) if ragged else 6)
        fed = [int(column) for column in columns[row]]
        for query, seen in enumerate(tree.attention_mask[row]):
            canvas = query // width
            wanted = [
                column in real and (where == canvas or (index < len(own) and column not in fed))
                for index, (where, column) in enumerate(keys)
            ]
            assert seen.tolist() == wanted
