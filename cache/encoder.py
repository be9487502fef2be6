"""Encoder cache (E2D2): what is committed goes through the encoder once, block by block."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.cache.base import (
    Cache,
    Canvas,
    Feeds,
    HostCount,
    ModelSpec,
    Progress,
    Standing,
    StepPlan,
)
from dllm.cache.passes import encoded_and_decoded, gathered


@dataclass(frozen=True)
class EncoderCache(Cache):
    """Encodes what was committed with the pass that enters the next block, and stores it for good.

    For models of an encoder and a decoder: every pass decodes the block over what is stored, and
    the first one of a block encodes the block before it, at the beginning the prompt. No pass is
    spent on that alone, nor on the last block. Exact: tokens are those of `none`.

    `again` encodes all that stands before the block anew, each token seeing all of it, as the
    authors do without a cache; the tokens are others then.
    """

    again: bool = False

    source = "arXiv 2510.22852 (E2D2), kuleshov-group/e2d2 src/denoiser/diffusion.py generate"
    lockstep = False
    names_columns = True
    replayable = True
    encodes = True

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "encoder_decoder":
            other = "dual" if spec.attention == "full" else "block_causal"
            raise ValueError(
                "cache 'encoder' is for models of an encoder and a decoder (E2D2): this one has "
                f"attention={spec.attention!r}; use cache={other!r}"
            )

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        start = canvas.clean
        if self.again:
            start = torch.where(start < canvas.block_start, 0, start)
        new = (canvas.numbers >= start[:, None]) & (canvas.numbers < canvas.block_start[:, None])
        return new & ~canvas.finished[:, None]

    def counting(self, spec: ModelSpec) -> Feeds:
        return HostCount(self._new)

    def _new(self, row: Standing[int], window: int) -> tuple[int, int]:
        """Returns from which column to before which one a pass encodes a row."""
        return 0 if self.again and row.clean < row.start else row.clean, row.start

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        # Which others a column is encoded with changes when a row enters a block, and only then.
        return self.kept(canvas, progress, lambda: self._planned(canvas, progress, spec))

    def _planned(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        layout = canvas.layout
        columns, real = gathered(self.fed(canvas, spec), progress.num_fed, canvas)
        block = canvas.block_start[:, None] + canvas.numbers[: layout.window_length]
        stored = columns.where(real, -1)
        plan = encoded_and_decoded(columns, stored, block, canvas, layout.num_columns)
        if not self.again:
            return plan
        before = canvas.numbers[: layout.num_columns] < canvas.block_start[:, None]
        seen = plan.attention_mask
        assert seen is not None
        seen[:, : columns.shape[1], : layout.num_columns] = before[:, None]
        return replace(plan, attention_mask=seen)
