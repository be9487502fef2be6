"""What a device can do at most: bytes it moves, products it forms, and the floor of a pass."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

import dllm
from benchmarks.machine import rounds
from dllm.state.plan import StepPlan


@dataclass(frozen=True)
class Roofs:
    """Measured limits of a device."""

    bytes_per_second: float  # copying: what is read and what is written
    flops_per_second: float  # a large square product, two a multiply-add

    def floor(self, model: dllm.HostedModel, plan: StepPlan) -> dict[str, Any]:
        """Returns the least seconds of a pass: its weights and keys read once, its products."""
        num_bytes = pass_bytes(model, plan)
        flops = model.cost.flops(plan.shape)
        seconds = {
            "bytes": num_bytes / self.bytes_per_second,
            "flops": flops / self.flops_per_second,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        return {
            "ms": 1e3 * seconds[bound],
            "bound": bound,
            "bytes": num_bytes,
            "flops": flops,
            "bytes_ms": 1e3 * seconds["bytes"],
            "flops_ms": 1e3 * seconds["flops"],
            "weights_ms": 1e3 * weight_bytes(model) / self.bytes_per_second,
        }

    def record(self) -> dict[str, float]:
        """Returns the limits by name."""
        return asdict(self)


def measure_roofs(device: torch.device, dtype: torch.dtype, repeats: int) -> Roofs:
    """Returns what a large copy and a large product reach."""
    large = device.type == "cuda"
    # Larger than caches that a network's weights do not fit into either.
    source = torch.zeros(2**30 if large else 2**28, dtype=torch.uint8, device=device)
    target, side = torch.empty_like(source), 8192 if large else 512
    square = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(square)
    works = [lambda: target.copy_(source), lambda: torch.matmul(square, square, out=out)]
    copying, product = (min(taken) for taken in rounds(works, repeats, device))
    return Roofs(2 * source.numel() / copying, 2 * side**3 / product)


def pass_bytes(model: dllm.HostedModel, plan: StepPlan) -> int:
    """Returns the bytes that a pass must read: every weight of layers and head, keys and values."""
    return (
        weight_bytes(model) + plan.positions.shape[0] * plan.shape.num_seen * model.cost.slot_bytes
    )


def weight_bytes(model: dllm.HostedModel) -> int:
    """Returns the bytes of the weights that every pass reads: those of layers and head."""
    network = model.network
    parts = (*network.blocks.parameters(), *network.norm.parameters(), network.head.weight)
    return sum(weight.numel() * weight.element_size() for weight in parts)


def median_ms(taken: list[float]) -> float:
    """Returns the median of seconds, in milliseconds."""
    return 1e3 * statistics.median(taken)
