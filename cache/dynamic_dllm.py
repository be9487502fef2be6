"""Dynamic-dLLM's cache: near the last token, and what has changed in the layers that change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.cache.base import Cache, Candidates, Canvas, KVStore, ModelSpec, Progress, StepPlan
from dllm.cache.passes import every_column
from dllm.models.layer_policies import FeatureReuse
from dllm.options import Amount, Count, CountOrNone

_ROUNDING = 1e-6  # columns: what is a whole number but for rounding is one


@dataclass(frozen=True)
class DynamicCache(Cache):
    """Computes `window` columns around the last token, and those whose values changed most.

    The window is an odd number of columns, one more than an even `window`, around the last of the
    columns that were committed last, and moved into the answer where it hangs over. Of the others
    a layer computes its part of `budget` columns a layer: that of all layers is dealt out by the
    softmax of `sharpness` times the mean of 1 - cosine by which values of the answer changed in
    each layer in the pass before. A part of a column is none. The first layer computes everything
    and takes a part as one that did not change. Intervals are those of `dllm_cache`: the prompt is
    computed every `prompt_every` forwards, the answer every `answer_every`; after that, and in the
    first two passes, all layers get the same. Where the budget of a pass falls is known before it
    is planned, so that layers compute no more than their part.

    In the authors' code the parts are always equal: the first layer, which deals them out, is
    always one that computes everything, and there the factor is 1e-8. `sharpness=0` is that; 200
    is the factor of the branch that never runs there. They count 32 layers, here it is the
    network's number. Their runs refresh nothing (`released`), their example does.
    """

    prompt_every: Count = 100  # forwards
    answer_every: Count = 7  # forwards
    window: CountOrNone = 32  # columns
    budget: CountOrNone = 32  # columns, the mean over layers; this and `window` 0: none of either
    sharpness: Amount = 200.0

    source = "arXiv 2606.26120; TianyiWu233/DYNAMIC-DLLM dynamic_dllm_cache/hooks"
    lockstep = False
    watches = True
    presets = {
        "demo": {"prompt_every": 100, "answer_every": 7, "window": 32, "budget": 32},
        "released": {"prompt_every": 5000, "answer_every": 5000, "sharpness": 0},
    }

    def admits(self, progress: Progress) -> bool:
        return not progress.unfinished  # the intervals of all rows are counted together

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        plan = every_column(canvas, spec, store=True, width=progress.length)
        columns, start = plan.positions, canvas.prompt_length[:, None]
        answer = (columns >= start) & (columns < canvas.length[:, None])
        # All unfinished rows have taken the same number of forwards.
        prompt_now = progress.num_forwards % self.prompt_every == 0
        answer_now = progress.num_forwards % self.answer_every == 0
        near = answer if answer_now else answer & self._window(canvas, columns)
        num_slots = min(canvas.layout.num_slots, progress.length)
        most = num_slots if answer_now else min(self._width, num_slots)
        count, chosen = self._parts(canvas, progress)
        reuse = FeatureReuse(
            fresh=near | ((columns < start) & prompt_now),
            drifting=answer,
            count=count.minimum((answer & ~near).sum(1, keepdim=True)),
            num_fresh=progress.length if prompt_now else most,
            num_compared=0 if answer_now else num_slots,
            num_chosen=(0,) if answer_now else tuple(min(n, num_slots) for n in chosen),
            notes_change=True,
        )
        return replace(plan, kind="refresh" if prompt_now and answer_now else "step", policy=reuse)

    def watch(
        self,
        canvas: Canvas,
        plan: StepPlan,
        store: KVStore | None,
        candidates: Candidates,
        further: Candidates | None,
    ) -> LayerBudgets:
        if store is None or len(store.change) != len(store.keys) - 1:
            raise ValueError(
                "the cache goes by how much layers change, and the model left nothing in "
                "`store.change`: load the checkpoint with dllm.load, or use another cache"
            )
        # Guidance runs each row a second time behind the first.
        num_rows = canvas.layout.num_rows
        first = torch.zeros(num_rows, dtype=torch.float64, device=canvas.tokens.device)
        change = torch.stack([first, *(change[:num_rows] for change in store.change)], 1)
        parts = (self.sharpness * change).softmax(1) * self.budget * change.shape[1]
        return LayerBudgets((parts[:, 1:] + _ROUNDING).floor().long())

    @property
    def _width(self) -> int:
        """The columns of the window."""
        return self.window // 2 * 2 + 1 if self.window or self.budget else 0

    def _window(self, canvas: Canvas, columns: Tensor) -> Tensor:
        """Returns which fed columns (B, Q) lie in each row's window, (B, Q) bool."""
        start, end = canvas.prompt_length, canvas.length
        written = torch.where(canvas.fixed, -1, canvas.commit_step)
        latest = written.amax(1, keepdim=True)
        last = torch.where((written == latest) & (latest >= 0), canvas.numbers, -1).amax(1)
        first = torch.maximum(last - self._width // 2, start)
        first = first.minimum(torch.maximum(end - self._width, start))[:, None]
        return (columns >= first) & (columns < first + self._width)

    def _parts(self, canvas: Canvas, progress: Progress) -> tuple[Tensor, tuple[int, ...]]:
        """Returns how many columns each row gets in layers behind the first, and the most."""
        if canvas.cache_state is None or not progress.counts:
            even = torch.full_like(canvas.length, self.budget)[:, None]
            return even, (self.budget,)
        return canvas.cache_state.counts, progress.counts


@dataclass(frozen=True)
class LayerBudgets:
    """How many columns besides the window the next pass may compute."""

    counts: Tensor  # (B, n) int64 in each of the n layers behind the first
