"""dKV-Cache: a token is cached one step after it was committed, when it has been fed as itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import chosen_columns, every_column, predictors
from dllm.options import Count


@dataclass(frozen=True)
class DelayedCache(Cache):
    """Feeds the masks and what the last step committed; the rest is refreshed now and then.

    A block begins with `warmup` passes over everything, and so is every pass whose number in the
    block is a multiple of `refresh`. `prompt="once"` leaves the prompt out of all refreshes but
    the first (the authors' PD), without any refresh it is their Prefill: `decoded=False`.

    In a model with shifted logits a column predicts the next one. `un_right` caches it when both
    are decoded; `un`, the authors' default, looks at the next one alone, so that it may keep the
    keys of a mask. Their `right` looks at the column alone, and masks are left without logits.
    """

    refresh: Count | None = 8  # forwards of a block; None: only when it begins
    warmup: Count = 2  # forwards
    prompt: Literal["refresh", "once"] = "refresh"
    decoded: bool = True  # decoded columns are cached, not the prompt alone
    shift: Literal["un_right", "un"] = "un_right"

    source = (
        "arXiv 2505.15781; horseee/dKV-Cache generation_utils/llada_dkv_cache_decode.py, "
        "dream_generation_utils.py"
    )
    names_columns = True
    presets = {
        "llada": {"refresh": 8, "warmup": 2},
        "dream": {"refresh": 4, "warmup": 1},
        "prefill": {"refresh": None, "warmup": 1, "prompt": "once", "decoded": False},
        "pd": {"refresh": 4, "warmup": 1, "prompt": "once"},
    }

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        def bounds(prompt: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
            begin = (prompt - spec.logit_shift)[:, None]
            return canvas.numbers >= begin, canvas.numbers < length[:, None]

        answer, real = canvas.keep("answer", bounds, canvas.prompt_length, canvas.length)
        real = real & canvas.active[:, None]
        fresh = self._refreshes(canvas)[:, None]
        fed = fresh | (answer > self._cached(canvas, spec))
        if canvas.layout.whole_block:
            fed = fed | predictors(canvas.block, spec)
        if self.prompt == "once":
            fed = (fed & answer) | (canvas.step == 0)[:, None]
        return real & fed

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        # With `once` a row reads its prompt in its own first pass, whatever the others are at.
        together = self.prompt != "once" or not progress.num_forwards
        if together and progress.num_fed == progress.length:
            return every_column(canvas, spec, store=True, width=progress.length)
        return chosen_columns(self.fed(canvas, spec), canvas, progress, spec)

    def _refreshes(self, canvas: Canvas) -> Tensor:
        """Returns whose next pass feeds everything, (B,) bool."""
        once = self.prompt == "once"  # the store outlives the block
        number = canvas.step if once else canvas.step - canvas.entry_step
        fresh = number < self.warmup
        return fresh if self.refresh is None else fresh | (number % self.refresh == 0)

    def _cached(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        """Returns whose keys are those of a token that was fed as itself, (B, C) bool."""
        if not self.decoded:
            return torch.zeros_like(canvas.fixed)
        late = canvas.commit_step == (canvas.step - 1)[:, None]
        decoded = ~(canvas.masked | (late > canvas.fixed))
        if not spec.logit_shift:
            return decoded
        following = decoded.roll(-1, 1)
        # The last column predicts none. The authors cache it with the one before it, or, under
        # `un`, from the third pass on.
        last = canvas.numbers == canvas.length[:, None] - 1
        if self.shift == "un_right":
            before = torch.cat([decoded[:, :1], decoded[:, :-1]], 1)
            return decoded & torch.where(last, before, following)
        return following & ~(last & (canvas.step == 1)[:, None])
