"""SPA-Cache: what changed most in a few singular directions of the values, more in some layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import every_column
from dllm.models.singular_reuse import ShareCurve, SingularReuse
from dllm.options import Count, Range, Share

Part = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclass(frozen=True)
class SpaCache(Cache):
    """Computes a share of the answer in each layer, of what changed most, and all keys and values.

    How much a column changed is told by the cosine between its normed state now and in the pass
    before, both seen through the `rank` largest singular directions of the layer's value
    projection. The share is `most` in the layer at `place` of the depth and falls to both sides as
    a normal curve does, to `first` of it at one end and `last` of it at the other, in front of
    `place` no lower than `least`. All columns of the answer get new keys and values, from states
    that are new in part; only attention and feed-forward of the others are what they were. The
    first layer computes everything. So do all layers every `prompt_every` forwards, and all of the
    answer every `answer_every`.

    Since values are made of all columns anyway, they could be compared themselves as `dllm_cache`
    does; what this saves is the comparison. A model's directions are found once, in minutes for
    8 B weights on a CPU. The authors' ends of an answer every block are `at_eos` here.
    """

    prompt_every: Count = 50  # forwards
    answer_every: Count = 7  # forwards
    most: Share = 0.25  # of the answer
    place: Part = 0.75  # of the depth
    first: Part = 0.12  # of `most`
    last: Part = 0.52  # of `most`
    least: Share = 0.03125  # of the answer
    rank: Count = 128  # directions; those that there are, if fewer

    source = "arXiv 2602.02544; wenhao728/spa-cache spac/cache.py"
    lockstep = False
    presets = {
        "llada_gsm8k": {"prompt_every": 50, "answer_every": 7},
        "llada_humaneval": {"prompt_every": 50, "answer_every": 8, "least": 0.2},
        "llada_1_5": {"place": 0.8},
        "dream_gsm8k": {
            "prompt_every": 25,
            "answer_every": 2,
            "rank": 32,
            "place": 0.5,
            "first": 1 / 6,
            "last": 5 / 6,
        },
    }

    def admits(self, progress: Progress) -> bool:
        return not progress.unfinished  # the intervals of all rows are counted together

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        plan = every_column(canvas, spec, store=True, width=progress.length)
        columns, start = plan.positions, canvas.prompt_length[:, None]
        answer = (columns >= start) & (columns < canvas.length[:, None])
        # All unfinished rows have taken the same number of forwards.
        all_now = progress.num_forwards % self.prompt_every == 0
        answer_now = all_now or progress.num_forwards % self.answer_every == 0
        num_slots = min(canvas.layout.num_slots, progress.length)
        most = 0.0 if answer_now else self.most
        reuse = SingularReuse(
            fresh=((columns < start) & all_now) | (answer & answer_now),
            drifting=answer,
            count=answer.sum(1, keepdim=True),
            num_fresh=progress.length if all_now else num_slots * answer_now,
            num_compared=num_slots,
            num_chosen=(num_slots,),
            curve=ShareCurve(most, self.place, self.first, self.last, self.least),
            rank=self.rank,
        )
        return replace(plan, kind="refresh" if all_now else "step", policy=reuse)
