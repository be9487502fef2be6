"""SlowFast sampling: look for a span that is about to settle, then decode it fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm.candidates import Candidates, rank
from dllm.schedulers.base import Decision, Scheduler, Setup
from dllm.schedulers.view import State, View


@dataclass(frozen=True)
class SlowFast(Scheduler):
    """Commits one column a step until a span's end holds still, then all >= `high` inside it.

    A slow step notes the last column of the block that reaches `low`. When the variance of the
    last `window` notes is below `variance`, or after `most_slow` steps, the span up to there is
    decoded fast: what reaches `high`, else the best column. The next span begins at its end.
    The authors use one block for the whole text, and reuse the logits beyond the span; here every
    pass is complete.
    """

    high: float = 0.85  # probability, compared with >=
    low: float = 0.1
    most_slow: int = 8  # steps
    window: int = 2  # notes
    variance: float = 1.0  # squared columns

    source: ClassVar[str] = "arXiv 2506.10848; LiangrunFlora/Slow-Fast-Sampling"
    published: ClassVar[str] = (
        "LLaDA-8B-Base: GSM8K 69.83 -> 69.59 % at 3.2x tokens/s, MMLU 62.11 -> 66.56 % at 3.35x "
        "(paper)"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"high": 0.85, "low": 0.1, "most_slow": 8},
        "code": {"high": 0.9, "low": 0.3, "most_slow": 6},
    }

    def __post_init__(self) -> None:
        if self.window < 2 or self.most_slow < 1:
            raise ValueError(
                f"window={self.window} must be at least 2 notes and most_slow={self.most_slow} at "
                "least 1 step"
            )

    def start(self, setup: Setup) -> State:
        none = torch.full((setup.num_rows,), -1, device=setup.device)
        far = torch.full((setup.num_rows, self.window), torch.inf, device=setup.device)
        return {"end": none, "slow_steps": torch.zeros_like(none), "notes": far}

    def select(self, candidates: Candidates, view: View) -> Decision:
        fresh = view.block_step == 0
        end = torch.where(fresh, -1, view.state["end"])  # of the span, -1 in a slow phase
        span = view.masked & (view.columns < end[:, None])
        fast = span.any(1)
        # A span without masks is over: this step begins the next one.
        slow_steps = torch.where(fresh | (end >= 0), 0, view.state["slow_steps"]) + 1
        past = torch.where((fresh | (end >= 0))[:, None], torch.inf, view.state["notes"])
        notes = torch.cat([past[:, 1:], self._note(candidates, view)], 1)
        ready = (notes.var(1, correction=0) < self.variance) | (slow_steps >= self.most_slow)
        found = torch.where(ready, notes[:, -1].long(), -1)
        best = (rank(candidates.confidence, torch.where(fast[:, None], span, view.masked))) == 0
        passed = span & (candidates.confidence >= self.high)
        state = {
            "end": torch.where(fast, end, found),
            "slow_steps": slow_steps,
            "notes": notes,
        }
        return Decision(passed | best, state=state)

    def _note(self, candidates: Candidates, view: View) -> Tensor:
        """Returns the column after the last promising one, (B, 1) float."""
        promising = view.masked & (candidates.confidence >= self.low)
        last = torch.where(promising, view.columns + 1, -1).amax(1, keepdim=True)
        first = torch.where(view.masked, view.columns + 1, view.columns.amax() + 1)
        return torch.where(last < 0, first.amin(1, keepdim=True), last).float()
