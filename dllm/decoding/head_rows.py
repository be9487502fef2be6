"""The head's rows of a pass: logits only of columns that may be committed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm.schedulers import Needs
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.status import Status

_GROUP = 8  # rows: passes of the same number share a captured graph


def can_narrow(needs: Needs) -> bool:
    """Whether a scheduler reads statistics of masked columns of its block alone."""
    wide = needs.whole_row or needs.whole_block or needs.distributions
    return not (wide or needs.shadow or needs.branches > 1)


def narrow_head(plan: StepPlan, canvas: Canvas, status: Status) -> StepPlan:
    """Returns the plan with logits of masked columns alone; `known` names them.

    In most steps most of a block is committed already, and a row of the head costs as much as
    vocabulary times width. Rows are as many as the row with the most masks needs, in groups.
    """
    width = plan.head.shape[1]
    count = -(-status.num_open // _GROUP) * _GROUP
    if count >= width or plan.maps or plan.extra is not None:
        return plan
    wanted = canvas.open_columns()
    if plan.known is not None:
        wanted = wanted & plan.known
    places = wanted.int().sort(dim=1, descending=True, stable=True).indices[:, :count]
    known = torch.zeros_like(wanted).scatter(1, places, True)
    return replace(
        plan,
        head=plan.head.gather(1, places),
        places=places,
        known=known if plan.known is None else known & plan.known,
    )


def in_window(logits: Tensor, plan: StepPlan, width: int) -> Tensor:
    """Returns the logits (B, w, V) of a pass at the columns of the window, (B, W, V); else 0."""
    if plan.places is None:
        return logits
    at = plan.places[..., None].expand_as(logits)
    return logits.new_zeros(logits.shape[0], width, logits.shape[2]).scatter(1, at, logits)
