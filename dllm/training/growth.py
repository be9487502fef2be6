"""A wider network that computes what a narrow one does: Net2Net's wider operator."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace

import torch
from torch import Generator, Tensor

from dllm.models.config import NetworkConfig
from dllm.models.transformer import Transformer


def wider(network: Transformer, times: int, generator: Generator) -> Transformer:
    """Returns a network of `times` the hidden size, heads and feed-forward width.

    It computes the same logits to rounding. Every unit of the narrow network is there `times`
    times, in whole sets one behind the other, and all of them compute the same: queries stay with
    their keys, heads keep their width and so their rotation and scale, and each unit of the
    residual stream counts as often as any other, so that the mean square of a norm stays. What a
    unit gave is split over its copies (Net2WiderNet, arXiv 1511.05641, where shares are equal), for
    each weight in shares of its own that add up to one. They are normal around 1 / times, with the
    deviation at which their squares add up to one as well, so that rows of weights keep their
    length and copies differ from the first step of training on. Raises ValueError for what cannot
    grow.
    """
    check_growth(network, times)
    shape = network.config
    grown_shape = replace(
        shape,
        hidden_size=shape.hidden_size * times,
        intermediate_size=shape.intermediate_size * times,
        num_heads=shape.num_heads * times,
        num_kv_heads=shape.num_kv_heads * times,
    )
    grown = Transformer(grown_shape).to(network.head.weight)
    weights = {}
    for name, weight in network.state_dict().items():
        if weight.dim() == 1:
            weights[name] = weight.repeat(times)
        elif name.startswith("embedding"):
            weights[name] = weight.repeat(1, times)
        else:
            rows = weight if name.startswith("head") else weight.repeat(times, 1)
            weights[name] = (rows[:, None] * shares(rows, times, generator)).flatten(1)
    grown.load_state_dict(weights)
    return grown


def shares(weight: Tensor, times: int, generator: Generator) -> Tensor:
    """Returns random shares (rows, times, columns), of which those of a weight add up to one."""
    size = len(weight), times, weight.shape[1]
    drawn = torch.randn(size, generator=generator, dtype=torch.float64)
    drawn = drawn - drawn.mean(1, keepdim=True)  # of variance 1 - 1 / times
    return (1 / times + drawn * times**-0.5).to(weight)


@torch.no_grad()
def disturb(network: Transformer, noise: float, generator: Generator) -> None:
    """Adds normal noise to every matrix, of `noise` times the root of its mean square.

    Copies in the embedding are equal until then, and so is what the residual stream holds of them.
    """
    for weight in network.parameters():
        if weight.dim() == 2:
            size = noise * weight.square().mean().sqrt()
            weight.add_(size * torch.randn(weight.shape, generator=generator).to(weight))


def likeness(network: Transformer, times: int) -> dict[str, float]:
    """Returns for each kind of matrix the mean cosine of two copies of a unit, over all pairs.

    A unit is a row of weights, in the embedding and the head a column. Right after growing it is 1
    in the embedding, 0 in the head and 1 / times elsewhere; of unrelated rows it is about 0.
    """
    found: dict[str, list[Tensor]] = {}
    for name, weight in network.state_dict().items():
        if weight.dim() == 2:
            units = weight.T if name.startswith(("embedding", "head")) else weight
            copies = torch.nn.functional.normalize(units.float(), dim=1)
            copies = copies.unflatten(0, (times, -1)).transpose(0, 1)  # (units, times, width)
            first, second = torch.triu_indices(times, times, 1)
            cosines = (copies @ copies.mT)[:, first, second]
            found.setdefault(name.split(".")[-2], []).append(cosines.mean())
    return {kind: float(torch.stack(means).mean()) for kind, means in found.items()}


def check_growth(network: Transformer, times: int) -> None:
    """Raises ValueError unless a network is of LLaDA's layout, with float weights, and grows."""
    if times < 2:
        raise ValueError(f"times={times} does not widen a network: give 2 or more")
    shape = network.config
    others = [
        f"{field.name}={getattr(shape, field.name)!r}"
        for field in fields(NetworkConfig)
        if field.default is not MISSING and field.name != "rope_in_float32"
        if getattr(shape, field.name) != field.default
    ]
    if others:
        raise ValueError(
            f"a network with {', '.join(others)} cannot grow: what is copied is LLaDA's layout, "
            "without biases, norms of heads, joined projections, experts and tied heads"
        )
    with torch.device("meta"):
        plain = Transformer(shape).state_dict()
    held = network.state_dict()
    if held.keys() != plain.keys() or not all(one.is_floating_point() for one in held.values()):
        raise ValueError(
            "a network whose weights are rounded or joined cannot grow: load it with speed=None, "
            "from a checkpoint in floats"
        )
