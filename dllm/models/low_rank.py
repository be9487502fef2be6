"""A product of low rank beside a linear layer, which single passes add to its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dllm.state.plan import LayerPolicy


class LowRank(nn.Module):
    """A product of low rank that a LoRA adds to a linear layer, scale * B A x.

    Its matrices are no parameters: they are no part of the checkpoint that a network is saved as.
    """

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("a", a, persistent=False)  # (rank, inputs)
        self.register_buffer("b", b, persistent=False)  # (outputs, rank)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.get_buffer("a")), self.get_buffer("b"))


@dataclass(frozen=True)
class Adapted(LayerPolicy):
    """Has every layer add the LoRA that a model drafts with (`dllm.load(draft_adapter=...)`)."""

    whole_layer: ClassVar[bool] = False
    adapts: ClassVar[bool] = True
