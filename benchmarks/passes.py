"""A model that notes the passes it runs, and the least work that they could have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

import dllm
from dllm.models.layers import Block, SwiGLU
from dllm.state.plan import PassKind, StepPlan
from dllm.state.store import KVStore


@dataclass(frozen=True)
class PassShape:
    """What decides the matrix products of a pass."""

    kind: PassKind
    num_rows: int  # B
    num_fed: int  # Q
    num_head_rows: int  # w
    num_keys: int

    @property
    def plan(self) -> StepPlan:
        """A plan of such a pass without any numbers, to ask for its price."""
        fed = torch.empty(self.num_rows, self.num_fed, dtype=torch.int64, device="meta")
        return StepPlan(self.kind, fed, fed[:, : self.num_head_rows], self.num_keys, stored=fed)


class Watched:
    """A model that notes each pass, the seconds it takes, and those that the noting takes."""

    def __init__(self, model: dllm.HostedModel) -> None:
        self.model = model
        self.shapes: list[PassShape] = []
        self.seconds: list[float] = []
        self.noting = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, tokens: Tensor, plan: StepPlan, store: KVStore | None) -> Tensor:
        """Returns the model's logits."""
        entered = perf_counter()
        fed, head = plan.positions.shape, plan.logit_rows.shape[1]
        self.shapes.append(PassShape(plan.kind, fed[0], fed[1], head, plan.shape.num_seen))
        self._wait()
        start = perf_counter()
        logits = self.model.forward(tokens, plan, store)
        self._wait()
        end = perf_counter()
        self.seconds.append(end - start)
        self.noting += start - entered + perf_counter() - end
        return logits

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Floor:
    """The matrix products of passes with a network's own weights, and nothing else."""

    model: dllm.HostedModel
    shapes: Sequence[PassShape]

    @torch.inference_mode()
    def run(self) -> None:
        """Does the products of all passes."""
        network, device, dtype = self.model.network, self.model.device, self.model.dtype
        config = network.config
        blocks = [cast("Block", block) for block in network.blocks]
        inner = torch.randn(1, config.intermediate_size, dtype=dtype, device=device)
        wide = torch.randn(1, config.hidden_size, dtype=dtype, device=device)
        mixed = torch.randn(1, config.num_heads * config.head_dim, dtype=dtype, device=device)
        for shape in self.shapes:
            rows = shape.num_rows * shape.num_fed
            x, y, z = (t.expand(rows, -1).contiguous() for t in (wide, inner, mixed))
            for number, block in enumerate(blocks, start=1):
                layer, feed = block.attention, cast("SwiGLU", block.feed_forward)
                for part in (layer.q, layer.k, layer.v):
                    F.linear(x, part.weight)
                if number == len(blocks) and shape.plan.shape.narrows:
                    x, y, z = (t[: shape.num_rows * shape.num_head_rows] for t in (x, y, z))
                F.linear(z, layer.out.weight)
                F.linear(x, feed.gate.weight)
                F.linear(x, feed.up.weight)
                F.linear(y, feed.down.weight)
            F.linear(x[: shape.num_rows * shape.num_head_rows], network.head.weight)
