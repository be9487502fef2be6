"""Keys and values of one generation kept for the next, where prompts begin with the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache import Cache
from dllm.cache.block_causal import unit
from dllm.cache.passes import lacking
from dllm.models.config import ModelSpec
from dllm.models.model import DenoisingModel
from dllm.state.canvas import Canvas
from dllm.state.rows import recall_prompt
from dllm.state.store import KVStore


@dataclass(frozen=True)
class _Run:
    """A generation, finished or not: `canvas.clean` says how much of its store is final."""

    model: DenoisingModel
    canvas: Canvas
    store: KVStore


class PromptMemory:
    """What the last generation stored, so that the next need not read the same prompt again.

    Give it to each `generate` or `stream` of a conversation, or of prompts that share their
    examples. Every row takes the longest beginning, in whole blocks, that any row of the last run
    has in common with its prompt; tokens are those of a run without it. Only for models in which
    no block sees a later one. Where blocks are counted from the prompt's end, another length cuts
    the same tokens into other blocks: a row then takes over what was cut like it, and else nothing.
    It keeps that run's K/V store until the next run or `clear`.
    """

    def __init__(self) -> None:
        self._last: _Run | None = None
        self.reused: tuple[int, ...] = ()  # columns that each row of the last run took over

    @property
    def num_bytes(self) -> int:
        """The memory that is held between runs, in bytes."""
        return 0 if self._last is None else self._last.store.num_bytes

    def clear(self) -> None:
        """Forgets the last run."""
        self._last, self.reused = None, ()

    def check(self, model: DenoisingModel, cache: Cache, guidance_scale: float) -> None:
        """Raises ValueError when keys cannot be handed from one run to another."""
        if model.spec.attention == "full":
            raise ValueError(
                f"memory needs a block-causal model: in {model.name!r} every column sees every "
                "other, so a prompt's keys change with what follows it; leave memory out"
            )
        if not cache.final_blocks:
            raise ValueError(
                f"memory needs a cache whose stored blocks are final, not "
                f"{cache.summary()['name']!r}: use cache='block_causal'"
            )
        if guidance_scale > 0:
            raise ValueError(
                f"memory does not go with guidance_scale={guidance_scale}: half of a guided run "
                "reads the prompt as masks; leave memory out"
            )
        if self._last is not None and self._last.model is not model:
            raise ValueError(
                f"this memory is of the model {self._last.model.name!r} and cannot serve "
                f"{model.name!r}: give each model its own, or call memory.clear()"
            )

    @staticmethod
    def suits(model: DenoisingModel, cache: Cache, guidance_scale: float) -> bool:
        """Whether keys can be handed from one run to another, as `check` asks."""
        return model.spec.attention != "full" and cache.final_blocks and not guidance_scale

    def recall(self, model: DenoisingModel, canvas: Canvas, store: KVStore) -> None:
        """Fills a new store with what the last run has, and remembers the new run instead."""
        self.reused = (0,) * canvas.layout.num_rows
        if self._last is not None:
            source, length = _longest_match(self._last.canvas, canvas, model.spec)
            self._copy(source, length, canvas, store)
            recall_prompt(canvas, length)
            self.reused = tuple(length.tolist())
        self._last = _Run(model, canvas, store)

    def _copy(self, source: Tensor, length: Tensor, canvas: Canvas, store: KVStore) -> None:
        assert self._last is not None
        old, rows = self._last, torch.arange(canvas.layout.num_rows)
        _copy_keys(_Rows(old.store, old.canvas, source), _Rows(store, canvas, rows), length)


@dataclass(frozen=True)
class _Rows:
    """Rows (n,) of a canvas, with its store."""

    store: KVStore
    canvas: Canvas
    rows: Tensor

    @property
    def stride(self) -> int:
        """Rows of the store for each of the canvas, of which the first is the row's own."""
        return self.store.shape.num_rows // self.canvas.layout.num_rows


def _copy_keys(source: _Rows, target: _Rows, length: Tensor) -> None:
    """Copies what is stored of the columns before the largest `length` (n,), row for row.

    Further columns than a row takes over are never read: its first pass feeds and stores them.
    """
    longest = int(length.max())
    if not longest:
        return
    rows, every = (source.rows, target.rows), (source.stride, target.stride)
    target.store.take_over(source.store, rows, longest, every)


@dataclass
class SeatMemory:
    """Hands what rows of a canvas have stored to rows that enter it and begin as they do.

    Those before them may still be decoded, or have left: their tokens and keys stand at their
    seats until others sit there. Each row takes over what `PromptMemory` would.
    """

    spec: ModelSpec
    store: KVStore | None = None  # of the canvas; None: it was not made yet

    def hand_over(self, canvas: Canvas, seats: Sequence[int], rows: Sequence[Canvas]) -> list[int]:
        """Fills `seats` for rows, each a canvas of its own before its first step.

        Returns the columns that each row takes over.
        """
        if self.store is None:
            return [0] * len(rows)
        found = [_longest_match(canvas, row, self.spec) for row in rows]
        source, length = (torch.cat(parts) for parts in zip(*found, strict=True))
        target = _Rows(self.store, canvas, torch.tensor(list(seats)))
        _copy_keys(_Rows(self.store, canvas, source), target, length)
        for row, count in zip(rows, length.split(1), strict=True):
            recall_prompt(row, count)
        return [int(count) for count in length]


def _longest_match(old: Canvas, new: Canvas, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Returns which old row begins most like each row (B,) and how far (B,), on the host.

    Never beyond the first mask: what the old run holds in final form is tokens. Of no use is a row
    whose first block is of another length.
    """
    block, lacks, others = unit(spec), _lacking(new, spec), _lacking(old, spec)
    stored, length = old.tokens.cpu(), old.clean.cpu()
    width = min(stored.shape[1], new.tokens.shape[1])
    matches = [
        torch.minimum((stored[:, :width] == prompt).long().cummin(1).values.sum(1), length)
        * (others == lack)
        for prompt, lack in zip(new.tokens[:, :width].cpu(), lacks, strict=True)
    ]
    best, source = torch.stack(matches).max(1)
    return source, ((best + lacks) // block * block - lacks).clamp(min=0)


def _lacking(canvas: Canvas, spec: ModelSpec) -> Tensor:
    """Returns how many columns each row's first block lacks of a whole one, (B,) on the host."""
    start = canvas.prompt_length.cpu()
    return lacking(start, unit(spec)) if spec.blocks_from == "prompt" else torch.zeros_like(start)
