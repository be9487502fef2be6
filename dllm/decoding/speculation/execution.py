"""The ways to run several canvases of a row: as rows, as one long row, or one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from dllm.decoding.passes import Forward
from dllm.decoding.speculation.verifiers import Execution
from dllm.state.plan import StepPlan

Run = Callable[[Tensor, StepPlan, Forward], Tensor]


def as_batch(variants: Tensor, plan: StepPlan, forward: Forward) -> Tensor:
    """Returns logits (B * n, W, V) of canvases (B, n, C), each with its part of the store."""
    return forward(variants.flatten(0, 1), _fanned_out(plan, variants.shape[1]))


def as_one_row(variants: Tensor, plan: StepPlan, forward: Forward) -> Tensor:
    """Returns the same from rows in which the canvases follow one another."""
    num_rows, count, _ = variants.shape
    wide = as_tree(plan, count)
    forward.count(wide, num_canvases=count)
    columns = plan.positions[:, None].expand(-1, count, -1)
    logits = forward.feed(variants.gather(2, columns).flatten(1), wide)
    return logits.reshape(num_rows * count, -1, logits.shape[-1])


def in_turn(variants: Tensor, plan: StepPlan, forward: Forward) -> Tensor:
    """Returns the same from as many passes as there are canvases, counted as one.

    Each has the shapes of a pass without drafts, so it rounds like one in any dtype. They run
    from the last draft to the row itself, whose keys stay in the store.
    """
    count = variants.shape[1]
    forward.count(_fanned_out(plan, count))
    fed = [variants[:, number].gather(1, plan.positions) for number in range(count)]
    logits = [forward.feed(tokens, plan) for tokens in reversed(fed)]
    return torch.stack(logits[::-1], 1).flatten(0, 1)


EXECUTIONS: dict[Execution, Run] = {"batch": as_batch, "tree": as_one_row, "sequential": in_turn}


def _fanned_out(plan: StepPlan, count: int) -> StepPlan:
    """Returns the pass that feeds every row `count` times."""
    rows = torch.arange(plan.positions.shape[0], device=plan.positions.device)
    return plan.of_rows(rows.repeat_interleave(count))


def as_tree(plan: StepPlan, count: int) -> StepPlan:
    """Returns the pass that feeds `count` canvases of each row, one behind the other.

    Every canvas sees its own fed columns, and of the store what was not fed. The first one's keys
    are stored as `plan` says, those of the others are gone after the pass. Logits are (B, count *
    W, V), canvas by canvas (arXiv 2510.00294, cychomatica/FreeDave tree attention).
    """
    num_fed = plan.positions.shape[1]
    first = num_fed * torch.arange(count, device=plan.positions.device)[:, None]
    return replace(
        plan,
        positions=plan.positions.repeat(1, count),
        logit_rows=(plan.logit_rows[:, None] + first).flatten(1),
        num_keys=plan.num_keys if plan.stored is not None else count * num_fed,
        attention_mask=_mask(plan, count),
    )


def _mask(plan: StepPlan, count: int) -> Tensor:
    """Returns which keys each fed column of each canvas sees, (B, count * Q, seen keys) bool."""
    (num_rows, num_fed), num_keys = plan.positions.shape, plan.num_keys
    seen = plan.attention_mask
    if seen is None:
        seen = torch.ones(num_rows, 1, num_keys, dtype=torch.bool, device=plan.positions.device)
    seen = seen.expand(-1, num_fed, -1)
    if plan.stored is None:
        return _own(seen, count)
    beyond = (plan.positions >= num_keys)[:, None]  # nobody sees them, nor has the mask a place
    at = plan.positions.clamp(max=num_keys - 1)[:, None].expand_as(_square(plan.positions))
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
