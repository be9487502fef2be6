"""The margin guard: doubtful decisions wait for a pass that rounds as the base's does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dllm import schedulers
from dllm.decoding.speculation.passes import is_steady
from dllm.state.candidates import Candidates
from tests.support.models import golden_model, random_prompts
from tests.support.verified import SLOTS, check_unchanged
from tests.support.views import view_of


def test_a_guard_makes_doubtful_steps_wait_for_a_pass_without_drafts() -> None:
    model, prompts = golden_model("llada_gqa"), random_prompts(2)
    options = {**SLOTS, "scheduler": "fixed_quota", "block_length": 16}
    forwards = []
    for guard in (0.0, 0.001, 0.05, 0.9):
        options["verifier"] = f"ssd:draft_length=4,margin_guard={guard}"
        _, fast = check_unchanged(model, prompts, options)
        forwards.append(fast.metrics.num_forwards)
    assert forwards == sorted(forwards)
    assert forwards[0] < forwards[2] < forwards[3]


def logits(best: float, second: float) -> Tensor:
    """Returns those of a distribution over 8 tokens whose two largest probabilities are given."""
    rest = [(1 - best - second) / 6] * 6
    return torch.tensor([best, second, *rest]).double().log()


@pytest.mark.parametrize(
    ("scheduler", "first", "second", "steady"),
    [
        ("fixed_quota", (0.9, 0.05), (0.6, 0.2), True),
        ("fixed_quota", (0.9, 0.05), (0.89, 0.05), False),  # either column might go first
        ("fixed_quota", (0.46, 0.45), (0.3, 0.1), False),  # either token
        ("threshold:0.9", (0.95, 0.01), (0.6, 0.2), True),
        ("threshold:0.9", (0.95, 0.01), (0.895, 0.05), False),  # either side of the threshold
        ("threshold:0.9", (0.95, 0.01), (0.46, 0.45), True),  # not sure, but left anyway
        ("threshold:0.5", (0.95, 0.01), (0.52, 0.05), True),
        ("threshold:0.5", (0.95, 0.01), (0.501, 0.05), False),
    ],
)
def test_which_decisions_are_steady(
    scheduler: str, first: tuple[float, float], second: tuple[float, float], steady: bool
) -> None:
    rows = torch.stack([torch.stack([logits(*first), logits(*second)])] * 2)
    rows[1, 0] = logits(0.99, 0.001)
    rows[1, 1] = logits(0.3, 0.2)  # a row that is sure whatever the other one is
    view = view_of(torch.ones(2, 2, dtype=torch.bool))
    candidates = Candidates(rows, rows.argmax(-1))
    found = is_steady(schedulers.registry.create(scheduler), candidates, view, 0.02)
    assert found.tolist() == [steady, True]
