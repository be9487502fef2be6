"""A stand-in for `Stream` that answers from a table: what a run does with texts of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dllm.eval.run import execute

ROW = {"prompt_tokens": 9, "valid_tokens": 5, "raw_tokens": 5, "forwards": 2, "row_forwards": 2}


class Answered:
    """A generation whose only step has finished all rows, with these texts."""

    meter = SimpleNamespace(probing=0.0, tokens_fed=1, tokens_needed=1, rows_fed=2, flops=0)

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[Any]:
        prompts = tuple(range(len(self.texts)))
        return iter([SimpleNamespace(prompts=prompts, finished=prompts)])

    def rows(self, prompts: list[int]) -> Any:
        rows = [SimpleNamespace(finish_reason="eos", **ROW) for _ in prompts]
        metrics = SimpleNamespace(rows=rows, flops=None, tokens_needed=None, peak_memory_bytes=None)
        return SimpleNamespace(texts=[self.texts[prompt] for prompt in prompts], metrics=metrics)


def answer_with(monkeypatch: pytest.MonkeyPatch, text_of: Callable[[Any], str]) -> list[Any]:
    """Makes runs answer with `text_of(prompt)`; returns the prompts that they will ask."""
    asked: list[Any] = []

    def stream(model: Any, prompts: list[Any], settings: Any, toll: Any, bound: int) -> Answered:
        asked.extend(prompts)
        return Answered([text_of(prompt) for prompt in prompts])

    monkeypatch.setattr(execute, "Stream", stream)
    return asked
