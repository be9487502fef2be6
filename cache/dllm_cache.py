"""dLLM-Cache: the prompt is computed seldom, the answer often, and in between what has changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor

from dllm.cache.base import Cache, Canvas, ModelSpec, Progress, StepPlan
from dllm.cache.passes import every_column
from dllm.models.layer_policies import FeatureReuse
from dllm.options import Count, Share


@dataclass(frozen=True)
class FeatureCache(Cache):
    """Computes the prompt every `prompt_every` forwards, the answer every `answer_every`.

    In between each layer computes the share `adaptive` of the answer whose values are least like
    those of the pass before. The others keep what attention and feed-forward gave them: all
    columns have logits at every pass. The first layer computes everything, so that all columns
    count as fed; FLOPs say what is saved. The store takes two more states for each column and
    layer: for LLaDA-8B as much again as keys and values, for Dream-7B seven times as much.
    """

    prompt_every: Count = 50  # forwards
    answer_every: Count = 7  # forwards
    adaptive: Share = 0.25  # of the answer's columns

    source = "arXiv 2506.06295; maomaocun/dLLM-cache"
    lockstep = False
    presets = {
        "llada_gsm8k": {"prompt_every": 50, "answer_every": 7},
        "llada_humaneval": {"prompt_every": 25, "answer_every": 5},
        "dream_base_gsm8k": {"prompt_every": 100, "answer_every": 8},
        "dream_gsm8k": {"prompt_every": 25, "answer_every": 2},
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
        fresh = ((columns < start) & prompt_now) | (answer & answer_now)
        num_slots = min(canvas.layout.num_slots, progress.length)
        share = 0.0 if answer_now else self.adaptive
        chosen = floor(num_slots * share)
        reuse = FeatureReuse(
            fresh=fresh,
            drifting=answer,
            count=(answer.sum(1, keepdim=True).double() * share).floor().long(),
            num_fresh=progress.length if prompt_now else num_slots * answer_now,
            num_compared=num_slots if chosen else 0,
            num_chosen=(chosen,),
        )
        return replace(plan, kind="refresh" if prompt_now and answer_now else "step", policy=reuse)
