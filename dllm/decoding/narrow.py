"""Logits of the columns that a step may commit alone, where nothing reads those of others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dllm.schedulers import Needs
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.progress import Progress

_GROUP = 8  # logit rows: passes of the same number share a captured graph


def can_narrow(needs: Needs) -> bool:
    """Whether a scheduler reads statistics of masked columns of its block alone."""
    wide = needs.whole_row or needs.whole_block or needs.distributions
    return not (wide or needs.shadow or needs.num_variants > 1)


def keep_logits(plan: StepPlan, canvas: Canvas, progress: Progress) -> StepPlan:
    """Returns the plan with logits of masked columns alone; `known` names them.

    In most steps most of a block is committed already, and a row of logits costs as much as
    vocabulary times width. Rows are as many as the row with the most masks needs, in groups.
    """
    policy, width = plan.policy, plan.logit_rows.shape[1]
    count = -(-progress.num_open // _GROUP) * _GROUP
    if count >= width or (policy is not None and policy.keeps_weights):
        return plan
    wanted = canvas.open_columns()
    if plan.known is not None:
        wanted = wanted & plan.known
    columns = wanted.int().sort(dim=1, descending=True, stable=True).indices[:, :count]
    known = torch.zeros_like(wanted).scatter(1, columns, True)
    return replace(
        plan,
        logit_rows=plan.logit_rows.gather(1, columns),
        logit_columns=columns,
        known=known if plan.known is None else known & plan.known,
    )


def in_window(logits: Tensor, plan: StepPlan, width: int) -> Tensor:
    """Returns the logits (B, w, V) of a pass at the columns of the window, (B, W, V); else 0."""
    if plan.logit_columns is None:
        return logits
    at = plan.logit_columns[..., None].expand_as(logits)
    return logits.new_zeros(logits.shape[0], width, logits.shape[2]).scatter(1, at, logits)
