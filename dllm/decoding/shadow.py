"""Shadows: window columns fed a second time as masks, to judge the tokens that stand there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan


def with_shadows(plan: StepPlan, canvas: Canvas) -> StepPlan:
    """Returns the plan with every window column fed once more, behind the others.

    A shadow holds the mask token at the position of its column. It sees all keys but its own
    column's, and the other shadows; nothing else sees a shadow (WINO, arXiv 2507.18578). The
    logits of the shadows follow those of the window: (B, 2 W, V).
    """
    layout, shadows = canvas.layout, canvas.columns()
    (num_rows, num_fed), count = plan.columns.shape, shadows.shape[1]
    first_key = plan.num_keys if plan.slots is None else layout.num_stored - count
    num_keys = first_key + count
    places = torch.arange(count, device=shadows.device)
    slots = plan.slots
    if slots is not None:
        rows = torch.arange(num_rows, device=shadows.device)[:, None]
        # A wide feed may reach spare columns whose slots the shadows need; nothing attends to them.
        scratch = layout.num_rows * layout.num_stored
        slots = torch.where(plan.columns < first_key, slots, scratch)
        slots = torch.cat([slots, rows * layout.num_stored + first_key + places], 1)
    head = (num_fed + places).expand(num_rows, -1)
    return replace(
        plan,
        columns=torch.cat([plan.columns, shadows], 1),
        head=torch.cat([plan.head, head], 1),
        num_keys=num_keys,
        attend=_attend(plan, shadows, num_keys, _in_block(canvas, shadows)),
        slots=slots,
        num_shadows=count,
    )


def _in_block(canvas: Canvas, shadows: Tensor) -> Tensor:
    """Returns which shadows stand in the row's block, (B, W) bool.

    Where more is looked at, the others serve no one: the block's must not see them.
    """
    return (shadows >= canvas.block_start[:, None]) & (shadows < canvas.block_end[:, None])


def _attend(plan: StepPlan, shadows: Tensor, num_keys: int, visible: Tensor) -> Tensor:
    """Returns which keys each fed column and each shadow sees, (B, Q + W, K) bool.

    `visible` (B, W) bool are the shadows that others see.
    """
    (num_rows, num_fed), count = plan.columns.shape, shadows.shape[1]
    ordinary = plan.attend
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
