"""Sub-block cache (Fast-dLLM v2): exact between blocks, and a dual cache within the block."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.cache.base import Canvas, FirstToken, ModelSpec, Progress, StepPlan
from dllm.cache.block_causal import BlockStoreCache, unit, whole_blocks
from dllm.options import Count


@dataclass(frozen=True)
class SubBlockCache(BlockStoreCache):
    """Decodes the block in parts of `sub_block` columns, and feeds the part alone where it may.

    Only the first part with masks may be committed. The whole block is fed when it begins, and as
    long as the part's first token is masked: where logits are shifted, the column that predicts it
    stands outside. In between, the other parts of the block are seen as they were last fed. A full
    block that a scheduler goes on with is one part. Each row follows the rule by itself; in the
    authors' code one such row has all rows feed their block. `reuse=false` feeds the whole block
    always: the parts are then the order of its tokens alone. `prefill_chunk` and `first_token` are
    explained in `block_causal.py`.
    """

    sub_block: Count = 8  # columns
    prefill_chunk: Count | None = None  # columns of a pass; None: the whole prompt at once
    first_token: FirstToken = "feed"
    reuse: bool = True  # of what the other parts of the block left in the store

    source = (
        "arXiv 2509.26328; NVlabs/Fast-dLLM v2/generation_functions.py (small_block_size, "
        "use_block_cache)"
    )

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if spec.attention == "block_causal" and unit(spec) % self.sub_block:
            raise ValueError(
                f"sub_block={self.sub_block} does not divide the model's block of {unit(spec)}"
            )

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        columns = canvas.numbers
        reach = whole_blocks(canvas.block_end, canvas.prompt_length, spec)
        whole = super().feeds(canvas, spec) & (columns < reach[:, None])
        if not self.reuse:
            return whole
        start, end = self._part(canvas)
        # A method that revises reads the logits of the part's first token after it is there.
        lead = spec.logit_shift if canvas.layout.whole_block else 0
        part = (columns >= start - lead) & (columns < end)
        open_first = canvas.masked.gather(1, start)
        begins = self._begins(canvas)[:, None]
        return torch.where(begins | open_first, whole, whole & part)

    def _begins(self, canvas: Canvas) -> Tensor:
        """Returns the rows whose block was not fed yet, (B,) bool."""
        entered, start = canvas.entry_step, canvas.block_start
        if self.first_token == "feed":
            return canvas.step == entered
        # A pass that forced the block's first token was fed what stands before the block.
        first = canvas.commit_step.gather(1, start[:, None])[:, 0]
        return canvas.step - entered == ((first == entered) & (start > 0)).long()

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        plan = self.planned(canvas, progress, spec)
        columns = canvas.columns()
        start, end = self._part(canvas)
        assert plan.known is not None
        return replace(plan, known=plan.known & (columns >= start) & (columns < end))

    def _part(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Returns where the part with the block's first mask begins and ends, (B, 1) each.

        The whole block if none is masked.
        """
        first = canvas.masked.int().argmax(1)  # of the row, so never before its block
        offset = (first - canvas.block_start).div(self.sub_block, rounding_mode="floor")
        start = canvas.block_start + offset * self.sub_block
        full = ~(canvas.masked.any(1) & (first < canvas.block_end))
        start = torch.where(full, canvas.block_start, start)
        end = (start + self.sub_block).minimum(canvas.block_end)
        end = torch.where(full, canvas.block_end, end)
        return start[:, None], end[:, None]
