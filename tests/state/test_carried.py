"""What a scheduler carries from a step to the next."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dllm
from dllm.schedulers import Decision
from dllm.state.canvas import Canvas
from dllm.state.carried import Replaced, merged, written
from dllm.state.rows import copied, start_scheduler
from tests.support.models import golden_model, random_prompts
from tests.support.views import layout_of

ROWS, PLACES, WIDTH, NUMBERS = 3, 5, 2, 4


def state() -> Tensor:
    return torch.arange(float(ROWS * PLACES * NUMBERS)).view(ROWS, PLACES, NUMBERS)


def decision() -> Decision:
    source = torch.Generator().manual_seed(0)
    places = torch.stack([torch.randperm(PLACES, generator=source)[:WIDTH] for _ in range(ROWS)])
    values = -torch.rand(ROWS, WIDTH, NUMBERS, generator=source)
    commit = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
    new = {"count": torch.arange(10, 10 + ROWS)}
    return Decision(commit, state=new, replaced={"large": Replaced(places, values)})


@pytest.mark.parametrize("active", [[True] * 3, [True, False, True], [False] * 3, None])
def test_places_of_active_rows_are_replaced(active: list[bool] | None) -> None:
    took, step = None if active is None else torch.tensor(active), decision()
    large, count = state(), torch.zeros(ROWS, dtype=torch.int64)
    after = written({"large": large, "count": count}, step.state, step.replaced, took)
    assert step.replaced is not None
    expected, some = state(), step.replaced["large"]
    for row in range(ROWS):
        if active is None or active[row]:
            for place, values in zip(some.places[row].tolist(), some.values[row], strict=True):
                expected[row, place] = values
    assert torch.equal(after["large"], expected)
    assert after["large"].data_ptr() == large.data_ptr()  # nothing was copied
    goes = [True] * ROWS if active is None else active
    assert after["count"].tolist() == [10 + row if goes[row] else 0 for row in range(ROWS)]


def test_a_state_that_begins_as_one_number_gets_memory_of_its_own() -> None:
    some = Replaced(torch.tensor([[1], [0], [1]]), torch.ones(ROWS, 1, NUMBERS))
    after = some.write(torch.zeros(()).expand(ROWS, PLACES, NUMBERS))
    assert after.sum(-1).tolist() == [[0, 4, 0, 0, 0], [4, 0, 0, 0, 0], [0, 4, 0, 0, 0]]


def test_what_others_hold_is_not_written_to() -> None:
    large, active = state(), torch.tensor([True, True, False])
    step, old = decision(), {"large": large, "count": torch.zeros(ROWS)}
    after = merged(old, step.state, step.replaced, active)
    assert torch.equal(large, state())
    assert not torch.equal(after["large"], large)


def test_a_state_that_a_step_leaves_alone_stays() -> None:
    count = torch.zeros(ROWS)
    after = written({"large": state(), "count": count}, None, decision().replaced)
    assert torch.equal(after["count"], count)


def test_drafts_are_decoded_on_a_state_of_their_own() -> None:
    tokens = torch.zeros(1, 2 * WIDTH, dtype=torch.int64)  # with spare columns
    canvas = Canvas(layout_of(1, WIDTH), tokens, tokens == 0, torch.tensor([0]))
    start_scheduler(canvas, {"large": torch.zeros(1, PLACES, NUMBERS)})
    draft, some = copied(canvas), Replaced(torch.tensor([[2]]), torch.ones(1, 1, NUMBERS))
    assert draft.scheduler_state is not None
    some.write(draft.scheduler_state["large"])
    assert canvas.scheduler_state is not None
    assert not canvas.scheduler_state["large"].any()


LARGE = {"klass": "log_probability", "dynamic_dllm": "distribution"}


@pytest.mark.parametrize("name", LARGE)
def test_a_distribution_is_written_where_it_stands(name: str) -> None:
    """A vocabulary times all slots is hundreds of MB, of which a step changes a block."""
    running = dllm.stream(
        golden_model("llada_gqa"),
        random_prompts(2),
        scheduler=name,
        cache="dual",
        max_new_tokens=16,
        block_length=8,
    )
    held = []
    for _ in running:
        assert running.canvas.scheduler_state is not None
        held.append(running.canvas.scheduler_state[LARGE[name]])
    assert len(held) > 2
    assert len({one.data_ptr() for one in held}) == 1  # all are alive: nothing was made anew
