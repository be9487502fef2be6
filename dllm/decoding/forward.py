"""One pass of the model over a canvas, counted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dllm.metrics import Meter
from dllm.models.model import DenoisingModel
from dllm.state.plan import StepPlan
from dllm.state.store import KVStore


@dataclass(frozen=True)
class Forward:
    """The model with its K/V store: one call is one pass, and is counted."""

    model: DenoisingModel
    store: KVStore | None
    meter: Meter

    def __call__(self, tokens: Tensor, plan: StepPlan) -> Tensor:
        """Returns the logits (B, w, V) of a pass over canvas tokens (B, C)."""
        self.meter.count(plan)
        return self.feed(tokens.gather(1, plan.columns), plan)

    def feed(self, fed: Tensor, plan: StepPlan) -> Tensor:
        """Returns the logits of a pass, which the caller has counted, over fed tokens (B, Q)."""
        if plan.num_shadows:
            fed[:, -plan.num_shadows :] = self.model.spec.mask_token_id
        return self.model.forward(fed, plan, self.store)
