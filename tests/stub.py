"""A stand-in for `generate` that answers from a table: what a run does with texts of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dllm.eval import runner

ROW = {"prompt_tokens": 9, "valid_tokens": 5, "raw_tokens": 5, "forwards": 2, "row_forwards": 2}

BATCH = {
    "tokens_fed": 1.0,
    "rows_fed": 2,
    "seconds": 1.0,
    "prefill_seconds": 0.5,
    "flops": None,
    "peak_memory_bytes": None,
}


def answer_with(monkeypatch: pytest.MonkeyPatch, text_of: Callable[[Any], str]) -> list[Any]:
    """Makes runs answer with `text_of(prompt)`; returns the prompts that they will ask."""
    asked: list[Any] = []

    def generate(model: Any, prompts: list[Any], settings: Any) -> Any:
        asked.extend(prompts)
        rows = [SimpleNamespace(finish_reason="eos", **ROW) for _ in prompts]
        metrics = SimpleNamespace(rows=rows, **BATCH)
        return SimpleNamespace(texts=[text_of(prompt) for prompt in prompts], metrics=metrics)

    monkeypatch.setattr(runner, "generate", generate)
    return asked
