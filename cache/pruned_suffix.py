"""Pruned suffix (Streaming-dLLM): a prefix cache that sees few columns behind the block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import chosen_columns, predictors
from dllm.options import CountOrNone


@dataclass(frozen=True)
class PrunedSuffix(Cache):
    """Feeds the block, `window` columns behind it and the row's last `tail`, and sees no others.

    That is of what stands behind the block; what stands before it is fed when the block begins,
    and seen as it was then. Columns keep their positions, so the last one says how long the answer
    may be. Text that is given among the slots is left out as masks are. Where a scheduler commits
    beyond the block, the pruned columns wait.
    """

    window: CountOrNone = 96  # columns
    tail: CountOrNone = 1  # columns

    source = (
        "arXiv 2601.17917; xiaoshideta/Streaming-dLLM LLaDA-1.5/generate.py:"
        "generate_with_prefix_cache, sampler.py"
    )
    names_columns = True
    replayable = True
    presets = {  # beside those of scheduler `relaxed_threshold`
        "llada15_256": {"window": 96},
        "llada15_512": {"window": 128},
    }

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        begins = (canvas.step == canvas.entry_step)[:, None]
        open_ = canvas.numbers >= canvas.block_start[:, None]
        fed = self._seen(canvas) & (begins | open_ | predictors(canvas.block, spec))
        return fed & canvas.active[:, None]

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        fed, seen = self.fed(canvas, spec), self._seen(canvas)
        return chosen_columns(fed, canvas, progress, spec, seen)

    def _seen(self, canvas: Canvas) -> Tensor:
        """Returns which columns a pass may see, (B, C) bool."""
        columns, length = canvas.numbers, canvas.length[:, None]
        near = columns < canvas.block_end[:, None] + self.window
        return (columns < length) & (near | (columns >= length - self.tail))
