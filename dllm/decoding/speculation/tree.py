"""Tree attention: several canvases of a row, fed end to end in one row that shares its keys."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.state.plan import StepPlan


def as_tree(plan: StepPlan, count: int) -> StepPlan:
    """Returns the pass that feeds `count` canvases of each row, one behind the other.

    Every canvas sees its own fed columns, and of the store what was not fed. The first one's keys
    are stored as `plan` says, those of the others are gone after the pass. Logits are (B, count *
    W, V), canvas by canvas (arXiv 2510.00294, cychomatica/FreeDave tree attention).
    """
    num_fed = plan.columns.shape[1]
    first = num_fed * torch.arange(count, device=plan.columns.device)[:, None]
    return replace(
        plan,
        columns=plan.columns.repeat(1, count),
        head=(plan.head[:, None] + first).flatten(1),
        num_keys=plan.num_keys if plan.slots is not None else count * num_fed,
        attend=_attend(plan, count),
        num_canvases=count,
    )


def _attend(plan: StepPlan, count: int) -> Tensor:
    """Returns which keys each fed column of each canvas sees, (B, count * Q, seen keys) bool."""
    (num_rows, num_fed), num_keys = plan.columns.shape, plan.num_keys
    seen = plan.attend
    if seen is None:
        seen = torch.ones(num_rows, 1, num_keys, dtype=torch.bool, device=plan.columns.device)
    seen = seen.expand(-1, num_fed, -1)
    if plan.slots is None:
        return _own(seen, count)
    beyond = (plan.columns >= num_keys)[:, None]  # nobody sees them, nor has the mask a place
    at = plan.columns.clamp(max=num_keys - 1)[:, None].expand_as(_square(plan.columns))
    fresh = seen.gather(2, at) & ~beyond
    fed = torch.zeros_like(seen[:, 0]).scatter_reduce(1, at[:, 0], ~beyond[:, 0], "amax")
    others = (seen & ~fed[:, None]).repeat(1, count - 1, 1)
    stored = torch.cat([seen, others], 1)
    return torch.cat([stored, F.pad(_own(fresh, count - 1), (0, 0, num_fed, 0))], 2)


def _own(seen: Tensor, count: int) -> Tensor:
    """Returns (B, Q, K) bool for `count` canvases that do not see each other, side by side."""
    num_rows, num_fed, num_keys = seen.shape
    same = torch.eye(count, dtype=torch.bool, device=seen.device)[:, None, :, None]
    return (seen[:, None, :, None] & same).reshape(num_rows, count * num_fed, count * num_keys)


def _square(columns: Tensor) -> Tensor:
    return columns[:, None].expand(-1, columns.shape[1], -1)
