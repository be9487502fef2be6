"""Shadows: window columns fed a second time as masks, to judge the tokens that stand there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.decoding.passes import Forward, PassResult, PlainPasses
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import Progress
from dllm.state.window import StepEvent


@dataclass(frozen=True)
class ShadowPasses:
    """Passes that feed every window column once more, for schedulers that need it."""

    plain: PlainPasses

    num_variants = 1

    def __call__(
        self, canvas: Canvas, plan: StepPlan, progress: Progress, forward: Forward
    ) -> StepEvent:
        wide = with_shadows(plan, canvas)
        count = wide.positions.shape[1] - plan.positions.shape[1]
        window, logits = canvas.window(wide), run_shadowed(wide, count, canvas, forward)
        if self.plain.observer is not None:
            whole = PassResult(wide, logits, forward.store)
            record = self.plain.record(canvas, window, whole, progress, forward.model)
            self.plain.observer(replace(record, num_shadows=count))
        result = PassResult(wide, logits[:, :-count], forward.store, shadow=logits[:, -count:])
        return self.plain.step.take(canvas, window, result)


def run_shadowed(wide: StepPlan, count: int, canvas: Canvas, forward: Forward) -> Tensor:
    """Returns the logits of a pass whose last `count` fed columns hold the mask token."""
    fed = canvas.tokens.gather(1, wide.positions)
    fed[:, -count:] = canvas.layout.mask_token_id
    forward.count(wide)
    return forward.feed(fed, wide)


def with_shadows(plan: StepPlan, canvas: Canvas) -> StepPlan:
    """Returns the plan with every window column fed once more, behind the others.

    A shadow holds the mask token at the position of its column. It sees all keys but its own
    column's, and the other shadows; nothing else sees a shadow (WINO, arXiv 2507.18578). The
    logits of the shadows follow those of the plan. Their keys take the last columns of the store.
    """
    layout, shadows = canvas.layout, canvas.columns()
    num_fed, count = plan.positions.shape[1], shadows.shape[1]
    first_key = plan.num_keys if plan.stored is None else layout.num_stored - count
    numbers = torch.arange(count, device=shadows.device).expand_as(shadows)
    stored = plan.stored
    if stored is not None:
        # A wide feed may reach spare columns whose slots the shadows need; nothing attends to them.
        stored = torch.cat([stored.where(plan.positions < first_key, -1), first_key + numbers], 1)
    return replace(
        plan,
        positions=torch.cat([plan.positions, shadows], 1),
        logit_rows=torch.cat([plan.logit_rows, num_fed + numbers], 1),
        num_keys=first_key + count,
        attention_mask=_mask(plan, shadows, first_key + count, _in_block(canvas, shadows)),
        stored=stored,
    )


def _in_block(canvas: Canvas, shadows: Tensor) -> Tensor:
    """Returns which shadows stand in the row's block, (B, W) bool.

    Where more is looked at, the others serve no one: the block's must not see them.
    """
    return (shadows >= canvas.block_start[:, None]) & (shadows < canvas.block_end[:, None])


def _mask(plan: StepPlan, shadows: Tensor, num_keys: int, visible: Tensor) -> Tensor:
    """Returns which keys each fed column and each shadow sees, (B, Q + W, K) bool.

    `visible` (B, W) bool are the shadows that others see.
    """
    (num_rows, num_fed), count = plan.positions.shape, shadows.shape[1]
    ordinary = plan.attention_mask
    if ordinary is None:
        size = (num_rows, 1, plan.num_keys)
        ordinary = torch.ones(size, dtype=torch.bool, device=shadows.device)
    ordinary = F.pad(ordinary, (0, num_keys - plan.num_keys))
    keys = torch.arange(num_keys, device=shadows.device)
    of_shadow = ordinary[:, :1] & (keys != shadows[..., None])
    of_shadow = torch.cat(
        [of_shadow[..., : num_keys - count], visible[:, None].expand(-1, count, -1)], -1
    )
    return torch.cat([ordinary.expand(-1, num_fed, -1), of_shadow], 1)
