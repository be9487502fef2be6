"""Streaming cache (WeDLM): the run of tokens before the first mask is stored token by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dllm.cache.base import Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.block_causal import BlockStoreCache
from dllm.cache.passes import chosen_columns
from dllm.options import Count


@dataclass(frozen=True)
class StreamingCache(BlockStoreCache):
    """Feeds the window from the first column on that was a mask in the last pass.

    Where a token sees only what stands before it, its keys are final once it was fed with no mask
    before it. So the leading run of tokens is fed once more, in the pass after it became one, and
    then never again, wherever blocks end. Tokens behind a mask are fed in each pass, given ones
    right of the window too, as masks may see them. Exact: tokens are those of `none`.
    `prefill_chunk` is explained in `block_causal.py`.
    """

    prefill_chunk: Count | None = None  # columns of a pass; None: the whole prompt at once

    source = "arXiv 2512.22737; Tencent/WeDLM wedlm/engine/wedlm_decoder.py"
    masks_last = True

    def check(self, spec: ModelSpec) -> None:
        if spec.attention not in ("causal", "masks_last"):
            other = "block_causal" if spec.attention == "block_causal" else "dual"
            raise ValueError(
                "cache 'streaming' needs a model whose tokens see nothing to their right (WeDLM), "
                f"or their keys are not final: this one has attention={spec.attention!r}; use "
                f"cache={other!r}"
            )
        self.check_chunk(spec)

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        columns, masked = canvas.numbers, canvas.masked
        start = torch.where(canvas.step == 0, canvas.clean, self._unsure(canvas, masked))
        if canvas.layout.whole_block:
            start = torch.minimum(start, canvas.block_start)
        end = canvas.block_start + canvas.layout.window_length
        fed = (columns >= start[:, None]) & (~masked | (columns < end[:, None]))
        return fed & (columns < canvas.length[:, None]) & ~canvas.finished[:, None]

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        return chosen_columns(self.fed(canvas, spec), canvas, progress, spec)

    def _unsure(self, canvas: Canvas, masked: Tensor) -> Tensor:
        """Returns each row's first column that is a mask, or was one in its last pass, (B,)."""
        late = (canvas.commit_step == (canvas.step - 1)[:, None]) & ~canvas.fixed
        unsure = masked | late
        return torch.where(unsure.any(1), unsure.int().argmax(1), canvas.block_start)
