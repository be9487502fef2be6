"""What the attention of a pass was on, for caches that go by it."""

from __future__ import annotations

import torch

from dllm.models.seen import nothing_seen, rollout
from dllm.state.canvas import Canvas
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


def watch(canvas: Canvas, plan: StepPlan, store: KVStore | None) -> None:
    """Notes what a pass fed, and what its attention was on."""
    if store is None or not store.maps:
        raise ValueError(
            "the cache goes by attention weights, and the model left none in `store.maps`: load "
            "the checkpoint with dllm.load, or use another cache"
        )
    layout, num_fed = canvas.layout, plan.columns.shape[1] - plan.num_shadows
    columns = plan.columns[:, :num_fed]
    keys = torch.arange(layout.num_columns, device=columns.device)
    # Guidance runs each row a second time behind the first.
    maps = [attention[: layout.num_rows, :num_fed] for attention in store.maps]
    importance = rollout(maps, columns, keys < canvas.length[:, None])
    fed = torch.zeros_like(canvas.fixed).scatter(1, columns, True)
    seen = canvas.seen or nothing_seen(canvas.tokens)
    canvas.seen = seen.after(fed, canvas.tokens, importance)
