"""Transformers' streamers, told a canvas: `put` in reading order, `put_draft`, `end`."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from dllm.generate import Stream
from dllm.state.window import StepEvent


class Streamer(Protocol):
    """What transformers' streamers have; those of diffusion models have `put_draft(value)` too."""

    def put(self, value: Any) -> None:
        """Takes tokens that are final."""

    def end(self) -> None:
        """Takes note that none follow."""


class Told:
    """Tells a streamer of one row: each token once, when it and all before it are final.

    Its draft is all behind that, as the model would write it now. Methods that take tokens back
    have nothing final until the end.
    """

    def __init__(self, streamer: Streamer, running: Stream, input_ids: Tensor) -> None:
        if len(input_ids) != 1:
            raise ValueError(
                f"diffusion_streamer was given with {len(input_ids)} rows, which end at different "
                "places: stream one row, or call dllm.stream on the wrapped model"
            )
        if getattr(streamer, "_takes_logits", False):
            raise ValueError(
                f"{type(streamer).__name__} takes the logits of drafts, which are not kept: tokens "
                "are told"
            )
        self._streamer, self._running, self._num_told = streamer, running, 0
        self._draft = getattr(streamer, "put_draft", None)
        streamer.put(input_ids.cpu())

    def step(self, event: StepEvent) -> None:
        """Tells what a step made final, and the draft of the rest."""
        canvas, running = self._running.canvas, self._running
        draft = canvas.tokens[0].clone()
        open_ = event.tokens[0] == canvas.layout.mask_token_id
        open_ = open_ & ~event.confidence[0].isnan()  # the model has said what it would write
        draft[event.columns[0][open_]] = event.drafts[0][open_]
        columns = slice(int(canvas.prompt_length[0]), canvas.layout.kept[0])
        shown = ~canvas.hidden[0, columns]
        if not running.scheduler.can_revise:
            self._tell(self._final(canvas.tokens[0, columns][shown].tolist()))
        if self._draft is not None:
            rest = draft[columns][shown][self._num_told :]
            if len(rest):
                self._draft(value=rest[None].cpu())

    def end(self, answer: list[int]) -> None:
        """Tells what is left of the answer, and that it is over."""
        self._tell(answer)
        self._streamer.end()

    def _final(self, tokens: list[int]) -> list[int]:
        """Returns the tokens that no later step changes, up to what ends the answer."""
        layout = self._running.canvas.layout
        if layout.mask_token_id in tokens:
            tokens = tokens[: tokens.index(layout.mask_token_id)]
        return up_to_end(tokens, layout.eos_token_ids, self._running)

    def _tell(self, tokens: list[int]) -> None:
        new = tokens[self._num_told :]
        if new:
            self._streamer.put(torch.tensor(new))
            self._num_told = len(tokens)


def up_to_end(tokens: list[int], ends: tuple[int, ...], running: Stream) -> list[int]:
    """Returns an answer's tokens up to its end token or the last one of a stop string."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    count = None if running.stop is None else running.stop.count(tokens[:last])
    return tokens[: last + 1] if count is None else tokens[:count]
