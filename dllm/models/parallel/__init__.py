"""One network over several processes: each has its part of every layer (tensor parallel)."""

from __future__ import annotations

from dataclasses import replace

import torch

from dllm.models.model import HostedModel
from dllm.models.parallel.group import Group, LostRankError, check_launch, join, own_device
from dllm.models.parallel.leading import Following, Leading, follow
from dllm.models.parallel.plan import check_divides, shard
from dllm.models.parallel.running import Sharded

__all__ = [
    "Following",
    "Group",
    "Leading",
    "LostRankError",
    "Sharded",
    "check_divides",
    "check_launch",
    "follow",
    "join",
    "own_device",
    "shard",
    "spread",
]


def spread(model: HostedModel, group: Group, device: torch.device) -> HostedModel:
    """Returns a model on the CPU as one rank has it: its part, on its device.

    That of the first rank generates; the others run its passes in `follow`.
    """
    shard(model.network, group)
    model.network.to(device)
    sharded = Sharded(model.network, group)
    leads = group.rank == 0
    runner = Leading(sharded, device) if leads else Following(model.network, group)
    return replace(model, runner=runner)
