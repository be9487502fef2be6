"""Block-causal cache: what stands before the block is stored for good, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dllm.cache.base import (
    Cache,
    Canvas,
    Feeds,
    FirstToken,
    HostCount,
    ModelSpec,
    Progress,
    Standing,
    StepPlan,
)
from dllm.cache.passes import check_first_token, chosen_columns, columns_from, lacking
from dllm.options import Count
from dllm.state.standing import Number


class BlockStoreCache(Cache):
    """The passes of exact decoding, for caches that store full blocks for good."""

    lockstep = False
    names_columns = True
    final_blocks = True
    prefill_chunk: Count | None  # each cache's own fields: their place among them differs
    first_token: FirstToken

    def check(self, spec: ModelSpec) -> None:
        name = self.summary()["name"]
        if spec.attention == "full":
            raise ValueError(
                f"cache {name!r} needs a block-causal model: with full attention all keys change "
                "with every token that is committed; use cache='prefix' or 'dual'"
            )
        self.check_chunk(spec)
        if spec.attention != "causal_context":  # whose stored tokens predict the next one
            check_first_token(self.first_token, spec)

    def check_chunk(self, spec: ModelSpec) -> None:
        """Raises ValueError if prompts would be read in parts of blocks."""
        if self.prefill_chunk is not None and self.prefill_chunk % unit(spec):
            raise ValueError(
                f"prefill_chunk={self.prefill_chunk} is not a multiple of the model's block of "
                f"{unit(spec)}"
            )

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        unbegun = self._unbegun(canvas) if self.first_token == "force" else None
        rows = (canvas.block_start, canvas.length, canvas.clean, canvas.prompt_length)
        start, end = span(Standing(*rows, unbegun), canvas.layout.window_length, spec)
        end = torch.where(canvas.finished, 0, end)
        return (canvas.numbers >= start[:, None]) & (canvas.numbers < end[:, None])

    def planned(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        """Returns the pass over the columns that `feeds` names."""
        plan = chosen_columns(self.fed(canvas, spec), canvas, progress, spec)
        plan = _of_what_exists(plan, progress)
        if self.first_token == "feed":
            return _seen_alike(plan, canvas, progress, spec)
        if not progress.entered:  # every row was fed at its block
            return plan
        forced = _ahead(self._unbegun(canvas), canvas.block_start)
        first = canvas.columns() == canvas.block_start[:, None]
        plan = replace(plan, eligible=first | ~forced[:, None], forced=forced)
        return plan if spec.logit_shift else self._predicted(plan, first, canvas, spec)

    def _predicted(
        self, plan: StepPlan, first: Tensor, canvas: Canvas, spec: ModelSpec
    ) -> StepPlan:
        """Returns the plan whose forced rows read the last column that they feed."""
        assert plan.forced is not None
        assert plan.known is not None
        forced = plan.forced[:, None]
        last = self.fed(canvas, spec).sum(1, keepdim=True) - 1
        rows = torch.where(forced, last.clamp(min=0), plan.logit_rows)
        return replace(plan, logit_rows=rows, known=torch.where(forced, first, plan.known))

    def _unbegun(self, canvas: Canvas) -> Tensor:
        """Returns the rows whose block was not fed yet, and begins with a mask, (B,) bool."""
        enters = (canvas.step == canvas.entry_step) & ~canvas.finished
        return enters & canvas.masked.gather(1, canvas.block_start[:, None])[:, 0]

    def prefill(self, canvas: Canvas, spec: ModelSpec) -> Iterator[StepPlan]:
        if self.prefill_chunk is None:
            return
        # What a short first block lacks is column 0 again.
        starts = _block_start(canvas.clean, canvas.prompt_length, spec)
        longest, furthest = int((canvas.first_block - starts).max()), int(starts.max())
        # The last part of the longest prompt is read with the first step.
        for read in range(0, longest - self.prefill_chunk, self.prefill_chunk):
            end = min(furthest + read + self.prefill_chunk, canvas.layout.num_columns)
            plan = columns_from(starts + read, self.prefill_chunk, canvas, spec)
            assert plan.attention_mask is not None
            # A block of one row sees all that is there; in a longer part one block hides another.
            whole = canvas.layout.num_rows == 1 and self.prefill_chunk == unit(spec)
            seen = None if whole else plan.attention_mask[..., :end]
            plan = replace(plan, kind="commit", num_keys=end, attention_mask=seen)
            yield replace(plan, logit_rows=plan.logit_rows[:, :0], known=None)


@dataclass(frozen=True)
class BlockCausalCache(BlockStoreCache):
    """Feeds the block, and with its first pass the blocks before it that became full meanwhile.

    In a model in which no block sees a later one, the keys of a full block never change again.
    They are stored by the pass that enters the next block, once all of its tokens are final, so
    that no pass is spent on them alone; what follows the block is neither fed nor seen. Tokens are
    those of `none`. Methods that look at a whole row find logits in the block only.

    `prefill_chunk` reads a longer prompt in passes of so many columns, to bound their memory.

    `first_token` is for shifted models, whose block is predicted from one column further left:
    `feed` adds that column to each pass; `force` stores what stands before the block in a pass of
    its own, and commits from it the block's first token, whatever its confidence (Fast-dLLM v2). So
    it does where a block follows a causal context, whose last token predicts the next, though the
    logits of the block are not shifted (Nemotron-Labs-Diffusion).
    """

    prefill_chunk: Count | None = None  # columns of a pass; None: the whole prompt at once
    first_token: FirstToken = "feed"

    replayable = True
    source = (
        "arXiv 2510.06303 (SDAR), JetAstra/SDAR generate.py; arXiv 2503.09573 (block diffusion)"
    )

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        forces = self.first_token == "force" and progress.entered
        if forces or not self._named_here:  # by masks, or by whatever a subclass goes by
            return self.planned(canvas, progress, spec)
        return self.kept(canvas, progress, lambda: self.planned(canvas, progress, spec))

    def counting(self, spec: ModelSpec) -> Feeds:
        if not self._named_here:
            return super().counting(spec)
        return HostCount(partial(span, spec=spec), asks_begin=self.first_token == "force")

    @property
    def _named_here(self) -> bool:
        """Whether no subclass names other columns."""
        return type(self).feeds is BlockStoreCache.feeds


def _of_what_exists(plan: StepPlan, progress: Progress) -> StepPlan:
    """Returns the plan over the keys up to the last column that is fed: none sees a later one."""
    mask, end = plan.attention_mask, progress.fed_end
    if mask is None or not end:  # nobody knows how far it goes
        return plan
    return replace(plan, num_keys=end, attention_mask=mask[..., :end])


def _seen_alike(plan: StepPlan, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
    """Returns the plan with one mask for all columns of a row where they are of one block.

    They see the same keys then, and where there is one row, all that there are: it has no mask.
    Passes feed whole blocks, so that a pass over no more columns than a block has is over one of
    each row; what fills a row up is not kept, whatever it sees.
    """
    mask, shifted = plan.attention_mask, spec.logit_shift != 0
    if spec.attention != "block_causal" or shifted or progress.num_fed > unit(spec):
        return plan
    if canvas.layout.num_rows == 1 and progress.fed_end:
        return replace(plan, attention_mask=None)
    return plan if mask is None else replace(plan, attention_mask=mask[:, :1])


def unit(spec: ModelSpec) -> int:
    """Returns the columns that see each other both ways, a block of the model."""
    return spec.block_length or 1 if spec.attention == "block_causal" else 1


def whole_blocks(columns: Number, prompt: Number, spec: ModelSpec) -> Number:
    """Returns where the model's blocks that hold everything before columns end.

    `prompt` is the length of each row's prompt.
    """
    return _block_start(columns + unit(spec) - 1, prompt, spec)


def _block_start(columns: Number, prompt: Number, spec: ModelSpec) -> Number:
    """Returns where the model's blocks that columns are in begin.

    Below 0 for the first one of a row where it is short.
    """
    block = unit(spec)
    if spec.blocks_from == "zero":
        return columns // block * block
    lack = lacking(prompt, block)
    return (columns + lack) // block * block - lack


def span(row: Standing[Number], window: int, spec: ModelSpec) -> tuple[Number, Number]:
    """Returns where the next pass must begin and end to be exact, if its row is not finished.

    Whole blocks of the model, from the first that is not stored with its final tokens to that of
    the block's first `window` columns; where logits are shifted, the column before the row's block
    as well, which predicts its first. Where that token is forced, the pass is of what stands before
    the block.
    """
    stored = _block_start(row.clean, row.prompt_length, spec)
    start = _least(stored, row.start - spec.logit_shift)
    end = whole_blocks(row.start + window, row.prompt_length, spec)
    if row.unbegun is not None:
        ahead = _ahead(row.unbegun, row.start)
        start = _choice(ahead, _least(start, row.start - 1), stored)  # which predicts the token
        end = _choice(ahead, whole_blocks(row.start, row.prompt_length, spec), end)
    return start, _least(end, row.length)


def _ahead(unbegun: Number, start: Number) -> Number:
    """Returns the rows whose pass commits the first token of the block at `start` alone, bool.

    It is fed what stands before the block, whose last column predicts that token.
    """
    return unbegun & (start > 0)


def _least(one: Number, other: Number) -> Number:
    return torch.minimum(one, other) if isinstance(one, Tensor) else min(one, other)


def _choice(where: Number, one: Number, other: Number) -> Number:
    if isinstance(where, Tensor):
        return torch.where(where, one, other)
    return one if where else other
