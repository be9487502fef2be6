"""Loading for one of several processes that hold a network together (tensor parallel)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dllm.models.loading.weights import parse_device
from dllm.models.model import HostedModel

Speed = str | Sequence[str] | None


def own_part(
    count: int | None, device: torch.device | str | None, speed: Speed, device_map: object
) -> tuple[torch.device, Speed]:
    """Returns the device of this process among so many that share a network, and its speed.

    None: it has a network for itself. Raises ValueError for what does not go with sharing.
    """
    if count is None:
        return parse_device(device), speed
    from dllm.models.parallel import check_launch, own_device  # start-up time: as below

    check_launch(count)
    if device_map is not None:
        raise ValueError(
            f"tensor_parallel={count} and device_map={device_map!r} both say where layers go: "
            "leave one out"
        )
    if speed not in (None, "auto"):
        raise ValueError(
            f"speed={speed!r} was never run with sums between processes inside its layers: leave "
            f"it out, or tensor_parallel={count}"
        )
    return parse_device(own_device(device)), None


def spread(
    fill: Callable[[], HostedModel], model: HostedModel, count: int, device: torch.device
) -> HostedModel:
    """Returns a model as one of so many processes has it, which `fill` gives its weights.

    Raises ValueError where they cannot share the network.
    """
    from dllm.models import parallel  # start-up time: few start several processes

    parallel.check_divides(model.network.config, count)
    group = parallel.join(count, device)  # who is missing is known before any weight is read
    return parallel.spread(fill(), group, device)


def check_whole(model: HostedModel) -> None:
    """Raises ValueError for a model of which this process has a part."""
    if getattr(model.network.embedding, "group", None) is not None:
        raise ValueError(
            f"{model.name!r} is tensor parallel, and a process has a part of it: load it in one "
            "process to save it"
        )
