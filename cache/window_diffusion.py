"""Window-Diffusion: the leftmost masks are decoded, some more are cached, the rest is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm.cache.base import Cache, Canvas, FirstToken, ModelSpec, Progress, StepPlan
from dllm.cache.passes import check_first_token, chosen_columns, predictors
from dllm.options import Count


@dataclass(frozen=True)
class WindowDiffusion(Cache):
    """Feeds the first `active` masks and what was committed since the last refresh.

    Between two refreshes, every `refresh` forwards, only decoded columns and the first `window`
    masks are attended to. A row's block may be longer than that: one block for the whole text is
    what the authors use, and other lengths restrict what is committed further.

    The two published variants differ: `pruned` leaves the far masks out of refreshes too;
    `contiguous` feeds all columns up to the active masks' end, older tokens between them
    included; without `slides` the active masks are those of the refresh until none of them is left,
    then the next ones; `first_token` is explained in `prefix.py`; `after_end` refreshes at every
    step once the row was cut off, which the scheduler `end_of_text` does.
    """

    active: Count = 16  # masks
    window: Count = 64  # masks
    refresh: Count = 32  # forwards
    pruned: bool = False
    contiguous: bool = False
    slides: bool = True
    first_token: FirstToken = "feed"
    after_end: bool = False

    source = "arXiv 2601.20332; vhicrgit/Window-Diffusion llada/, dream/"
    names_columns = True
    lockstep = False
    presets = {
        "llada": {"active": 16, "window": 64, "refresh": 32},
        # Its window counts one mask less than it is set to.
        "dream": {"active": 16, "window": 127, "refresh": 32, "first_token": "force"}
        | {"pruned": True, "contiguous": True, "after_end": True},
    }

    def __post_init__(self) -> None:
        if self.active > self.window:
            raise ValueError(
                f"active={self.active} must be at most window={self.window}: active masks are the "
                "first of the window"
            )

    def check(self, spec: ModelSpec) -> None:
        check_first_token(self.first_token, spec)

    def feeds(self, canvas: Canvas, spec: ModelSpec) -> Tensor:
        return _Phase(self, canvas, spec).fed

    def plan(self, canvas: Canvas, progress: Progress, spec: ModelSpec) -> StepPlan:
        phase = _Phase(self, canvas, spec)
        plan = chosen_columns(phase.fed, canvas, progress, spec, phase.seen)
        eligible = phase.eligible.gather(1, canvas.columns())
        return replace(plan, eligible=eligible, forced=phase.forced)


class _Phase:
    """Where each row stands between two refreshes; all (B, C) bool, read off its history."""

    def __init__(self, cache: WindowDiffusion, canvas: Canvas, spec: ModelSpec) -> None:
        start = canvas.step - canvas.step % cache.refresh
        fresh = (canvas.step == start)[:, None]
        if cache.after_end:
            fresh = fresh | (canvas.length < canvas.full_length)[:, None]
        columns = canvas.numbers
        real = columns < canvas.length[:, None]
        # What was still masked at the refresh: before its own commits where it is pruned.
        first = start + (0 if cache.pruned else 1)
        since = (canvas.commit_step >= first[:, None]) & ~canvas.fixed
        before = canvas.masked | since
        near = real & (~before | (_count(before) <= cache.window))
        refreshed = near if cache.pruned else real
        self.seen = torch.where(fresh, refreshed, near)
        masked = canvas.masked
        if not cache.slides:
            left = masked & (_count(before) <= cache.active)
            masked = torch.where(left.any(1, keepdim=True), before, masked)
        active = canvas.masked & (_count(masked) <= cache.active)
        late = (canvas.commit_step == (canvas.step - 1)[:, None]) & ~canvas.fixed
        fed = active | since | late
        if cache.contiguous:
            fed = (_count(before) >= 1) & (_count(masked) <= cache.active)
        if cache.first_token == "feed":
            fed = fed | predictors(active, spec)
        if canvas.layout.whole_block:
            fed = fed | predictors(canvas.block, spec)
        self.fed = torch.where(fresh, refreshed, fed & real) & canvas.active[:, None]
        self.forced = fresh[:, 0] if cache.first_token == "force" else None
        leftmost = canvas.masked & (_count(canvas.masked) == 1)
        at_refresh = canvas.masked if self.forced is None else leftmost
        self.eligible = torch.where(fresh, at_refresh, active)


def _count(masked: Tensor) -> Tensor:
    """Returns how many masks each column and those before it have, (B, C) int64."""
    return masked.cumsum(1)
