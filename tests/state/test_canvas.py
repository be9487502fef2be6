"""What is kept of a canvas from step to step is what would be made anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dllm
from dllm.state.canvas import Canvas, between
from dllm.state.window import Layout
from tests.support.models import golden_model, random_prompts

CASES: tuple[dict[str, Any], ...] = (
    {"scheduler": "threshold:0.5", "cache": "dual", "batch_size": 2},
    {"scheduler": "threshold:0.5", "cache": "prefix", "at_eos": "block"},
    {"scheduler": "wino", "cache": "prefix"},
    {"scheduler": "sliding:threshold:0.5", "cache": "dual"},
    {"scheduler": "multi_block", "cache": "none", "at_eos": "truncate"},
    {"scheduler": "klass", "cache": "dkv"},
    {"scheduler": "fixed_quota", "cache": "dual", "verifier": "ssd:3"},
    {"scheduler": "lopa", "cache": "dual", "at_eos": "skip"},
)


def small_canvas() -> Canvas:
    layout = Layout(
        num_rows=1,
        num_columns=2,
        block_length=1,
        mask_token_id=9,
        fill_token_id=0,
        eos_token_ids=(),
        lengths=(2,),
        kept=(2,),
        num_slots=1,
        window_length=1,
    )
    tokens = torch.tensor([[1, 9, 0]])
    return Canvas(layout, tokens, tokens != 9, torch.tensor([1]))


def test_what_is_written_is_seen() -> None:
    canvas = small_canvas()
    masked = canvas.masked
    assert canvas.masked is masked
    canvas.overwrite(masked, 5)
    assert not canvas.masked.any()


def test_what_is_made_of_the_same_is_kept() -> None:
    memo, first, calls = small_canvas(), torch.tensor([1]), []

    def make(tensor: Tensor, number: int) -> Tensor:
        calls.append(number)
        return tensor + number

    kept = memo.keep("sum", make, first, 1000)
    assert memo.keep("sum", make, first, 10**3) is kept
    assert memo.keep("other", make, first, 1000) is not kept
    assert memo.keep("sum", make, first.clone(), 1000) is not kept  # equal is not the same
    assert memo.keep("sum", make, first, 1001).item() == 1002
    memo.note("sum", kept, first, 5)
    assert memo.keep("sum", make, first, 5) is kept
    assert calls == [1000, 1000, 1000, 1001]


def test_a_column_lies_between_its_row_s_bounds() -> None:
    found = between(torch.arange(5), torch.tensor([1, 3]), torch.tensor([3, 3]))
    assert found.tolist() == [[False, True, True, False, False], [False] * 5]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return all(map(same, one, other))
    return one == other if not hasattr(one, "__dict__") else parts_are_same(vars(one), vars(other))


def parts_are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", CASES, ids=lambda options: " ".join(map(str, options.values())))
def test_nothing_kept_is_out_of_date(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, served = Canvas.keep, Counter[str]()

    def checked(memo: Canvas, name: str, make: Callable[..., Any], *of: Tensor | int) -> Any:
        kept = keep(memo, name, make, *of)
        assert same(kept, make(*of)), name
        served[name] += 1
        return kept

    monkeypatch.setattr(Canvas, "keep", checked)
    model = golden_model("llada_gqa", "float32")
    prompts = random_prompts(4, high=10)
    dllm.generate(model, prompts, max_new_tokens=24, block_length=8, **options)
    assert {"masked", "open", "columns", "block", "fixed"} <= served.keys()
