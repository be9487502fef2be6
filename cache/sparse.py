"""Sparse-dLLM: each layer keeps the keys outside the block that the block asks for most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dllm.cache.base import Cache, Canvas, FirstToken, ModelSpec, Progress, StepPlan
from dllm.cache.passes import block_entry, check_first_token, columns_from, every_column
from dllm.models.layer_policies import KeyRetention, RetainedKeys
from dllm.options import Count, CountOrNone, Share


@dataclass(frozen=True)
class SparseCache(Cache):
    """Feeds everything when a block begins, then the block alone, which sees a part of the rest.

    A block begins with `delay` + 1 full passes. In the last of them each layer picks the share
    `keep` of the columns outside the block whose keys have the largest product with the mean of
    the block's queries; `kernel` neighbours share their largest value. The others are hidden, not
    freed: what is dropped changes the tokens as in the authors' code, but saves no memory here.

    `first_token` is explained in `prefix.py`; `feed` has one more column fed, which is always
    seen. What a scheduler cuts off is hidden at once.
    """

    keep: Share = 0.5  # of the columns outside the block
    kernel: Count = 3  # columns
    delay: CountOrNone = 1  # forwards
    first_token: FirstToken = "feed"

    even = True
    source = "arXiv 2508.02558; OpenMOSS/Sparse-dLLM opencompass/models/sparse_dllm"

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd, to have a middle")

    def check(self, spec: ModelSpec) -> None:
        if spec.attention != "full":
            raise ValueError(
                "cache 'sparse' ranks columns on both sides of the block, and in a model with "
                f"{spec.attention} attention the block sees one: use 'block_causal' or 'sub_block'"
            )
        check_first_token(self.first_token, spec)

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        if not progress.entered and progress.block_forwards > self.delay:
            lead = self._lead(spec)
            width = lead + min(canvas.layout.window_length, progress.remaining)
            plan = columns_from(canvas.block_start - lead, width, canvas, spec)
            return replace(plan, policy=RetainedKeys())
        if progress.entered:
            plan = block_entry(canvas, progress, spec, self.first_token)
        else:
            plan = every_column(canvas, spec, store=True, width=progress.length)
        if progress.block_forwards < self.delay:
            return plan
        return replace(plan, policy=self._retention(plan, canvas, spec))

    def _retention(self, plan: StepPlan, canvas: Canvas, spec: ModelSpec) -> KeyRetention:
        layout, columns = canvas.layout, canvas.numbers
        real = columns < canvas.length[:, None]
        start = canvas.block_start[:, None]
        fed = (columns >= start - self._lead(spec)) & (columns < start + layout.window_length)
        ranked = (real & ~fed)[:, : plan.num_keys]
        # In float64, as Python would have it: 0.7 of 10 columns are 7.
        count = (ranked.sum(1).double() * self.keep).floor().long()
        asking = (real & canvas.block)[:, : plan.positions.shape[1]]
        return KeyRetention(asking, ranked, count, self.kernel)

    def _lead(self, spec: ModelSpec) -> int:
        return spec.logit_shift if self.first_token == "feed" else 0
