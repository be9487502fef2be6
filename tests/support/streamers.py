"""A streamer that keeps what it was told."""

from __future__ import annotations

from typing import Any

from transformers.generation.streamers import BaseStreamer


class Kept(BaseStreamer):
    """What was put, and of each draft how many tokens of the answer were put before it."""

    def __init__(self) -> None:
        self.puts: list[Any] = []
        self.drafts: list[tuple[int, Any]] = []
        self.ended = 0
        self._takes_logits = False

    def put(self, value: Any) -> None:
        self.puts.append(value.tolist())

    def put_draft(self, value: Any) -> None:
        self.drafts.append((sum(map(len, self.puts[1:])), value.tolist()))

    def end(self) -> None:
        self.ended += 1
