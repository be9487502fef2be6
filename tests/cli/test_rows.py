"""How many problems `dllm eval` decodes at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import dllm
from dllm.cli.defaults import ROWS
from dllm.cli.rows import choose_rows
from dllm.decoding import memory_limits
from dllm.decoding.memory_limits import Extent, rows_that_fit
from dllm.eval.tasks import TASKS
from dllm.settings import resolve


def rows(model: Any, free: int | None, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    monkeypatch.setattr(memory_limits, "available", lambda device: free)
    resolved = resolve({}, None, {"max_new_tokens": 64, "block_length": 32, **settings})
    return choose_rows(None, model, resolved, TASKS["arithmetic"].take(8))


def test_as_many_as_fit(tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(tiny, None, monkeypatch) == ROWS
    assert rows(tiny, 2**40, monkeypatch) == ROWS
    cached = rows(tiny, 2**24, monkeypatch, cache="dual")
    drawn = rows(tiny, 2**24, monkeypatch, cache="dual", temperature=0.7)
    plain = rows(tiny, 2**24, monkeypatch, cache="none")
    assert 1 <= drawn < cached < plain <= ROWS
    with pytest.raises(dllm.NotEnoughMemoryError, match="--batch-size 1 to try all the same"):
        rows(tiny, 2**12, monkeypatch)
    assert rows(replace(tiny, tokenizer=None), 2**12, monkeypatch) == ROWS
    assert choose_rows(7, tiny, resolve({}, None, {}), TASKS["arithmetic"].take(1)) == 7


def test_rows_worked_by_hand(tiny: dllm.HostedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = tiny.cost
    monkeypatch.setattr(memory_limits, "available", lambda device: 10**8)
    for sampled in (False, True):
        head = cost.head_bytes + sampled * cost.sampled_bytes
        a_row = 132 * (cost.slot_bytes + cost.token_bytes) + 2 * 32 * head
        found = rows_that_fit(tiny, Extent(100, 32, uses_store=True, sampled=sampled))
        assert found == 9 * 10**7 // a_row
    assert cost.sampled_bytes == 32 * tiny.spec.vocab_size
