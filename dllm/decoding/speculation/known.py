"""Candidates that need not be proposed again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.state.candidates import Candidates, Sampling
from dllm.state.noise import Noise


@dataclass(frozen=True)
class Known(Sampling):
    """Candidates that are known already: without noise each step proposes the same."""

    candidates: Candidates | None = None

    def propose(
        self,
        logits: Tensor,
        noise: Noise,
        columns: Tensor,
        step: Tensor,
        places: Tensor | None = None,
    ) -> Candidates:
        assert self.candidates is not None
        return self.candidates
