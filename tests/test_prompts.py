"""Prompts of a list in token ids: what is kept of each until all are on the canvas."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

import dllm
from dllm.prompts import encode_all
from dllm.settings import Settings
from tests.support.models import golden_model

COUNT, TOKENS, NEW = 500, 120, 128
A_ROW = 300  # bytes beside its tokens


@pytest.fixture(scope="module")
def model() -> dllm.HostedModel:
    return golden_model("llada_gqa", "float32")


def held(work: Any) -> tuple[Any, int]:
    """Returns what a call returns and the bytes that Python keeps of it."""
    tracemalloc.start()
    try:
        value = work()
        return value, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_prompt_takes_four_bytes_a_token_and_none_a_slot(model: dllm.HostedModel) -> None:
    settings = Settings(max_new_tokens=NEW, fixed={3: 7})
    prompts = [[5 + number % 50] * TOKENS for number in range(COUNT)]
    rows, num_bytes = held(lambda: encode_all(model, prompts, settings))
    assert num_bytes < COUNT * (4 * TOKENS + A_ROW) + 9 * NEW
    assert [list(row.prompt) for row in rows] == prompts
    mask = model.spec.mask_token_id
    assert all(list(row.slots) == [mask, mask, mask, 7, *[mask] * (NEW - 4)] for row in rows)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_ids_of_any_kind_become_the_same_rows(model: dllm.HostedModel, kind: Any) -> None:
    single = [8] if kind is torch.tensor else [kind(8)]
    prompts: Any = [kind([5, 6, 7]) if kind is torch.tensor else np.array([5, 6, 7], kind), single]
    rows = encode_all(model, prompts, Settings(max_new_tokens=2))
    assert [list(row.prompt) for row in rows] == [[5, 6, 7], [8]]


@pytest.mark.parametrize("token", [2**31, 2**63, 2**70, -1, -(2**40)])
def test_ids_beyond_any_vocabulary_are_named(model: dllm.HostedModel, token: int) -> None:
    with pytest.raises(ValueError, match=f"prompt 1: token id={token} is outside the vocabulary"):
        encode_all(model, [[5], [6, token]], Settings(max_new_tokens=2))


def test_a_wrong_length_is_no_fault_of_prompts_with_slots_of_their_own(
    model: dllm.HostedModel,
) -> None:
    mask, new = model.spec.mask_token_id, model.spec.max_length + 1
    (row,) = encode_all(model, [[5, mask, 6]], Settings(max_new_tokens=new, infill=True))
    assert list(row.slots) == [mask, 6]
    with pytest.raises(ValueError, match=f"max_new_tokens={new} is over the model's limit"):
        encode_all(model, [[5]], Settings(max_new_tokens=new))
