"""The ways to run several canvases of a row: as rows, as one long row, or one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dllm.decoding.forward import Forward
from dllm.decoding.speculation.tree import as_tree
from dllm.decoding.speculation.verifiers.base import Execution
from dllm.state.plan import StepPlan
from dllm.state.variants import fan_out

Run = Callable[[Tensor, StepPlan, Forward], Tensor]


def as_batch(variants: Tensor, plan: StepPlan, forward: Forward) -> Tensor:
    """Returns logits (B * n, W, V) of canvases (B, n, C), each with its part of the store."""
    wide = fan_out(plan, variants.shape[1], _num_stored(plan, forward))
    return forward(variants.flatten(0, 1), wide)


def as_one_row(variants: Tensor, plan: StepPlan, forward: Forward) -> Tensor:
    """Returns the same from rows in which the canvases follow one another."""
    num_rows, count, _ = variants.shape
    wide = as_tree(plan, count)
    forward.meter.count(wide)
    columns = plan.columns[:, None].expand(-1, count, -1)
    logits = forward.feed(variants.gather(2, columns).flatten(1), wide)
    return logits.reshape(num_rows * count, -1, logits.shape[-1])


def in_turn(variants: Tensor, plan: StepPlan, forward: Forward) -> Tensor:
    """Returns the same from as many passes as there are canvases, counted as one.

    Each has the shapes of a pass without drafts, so it rounds like one in any dtype. They run
    from the last draft to the row itself, whose keys stay in the store.
    """
    count = variants.shape[1]
    forward.meter.count(fan_out(plan, count, _num_stored(plan, forward)))
    fed = [variants[:, place].gather(1, plan.columns) for place in range(count)]
    logits = [forward.feed(tokens, plan) for tokens in reversed(fed)]
    return torch.stack(logits[::-1], 1).flatten(0, 1)


def _num_stored(plan: StepPlan, forward: Forward) -> int:
    return 0 if forward.store is None else forward.store.shape.num_columns


EXECUTIONS: dict[Execution, Run] = {"batch": as_batch, "tree": as_one_row, "sequential": in_turn}
