"""The digest of a model's weights, by which results and recipes know it whatever it is called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dllm.models.model import DenoisingModel
from dllm.models.speed.linear import parts_of
from dllm.models.transformer import Transformer

_SAMPLED = 4096  # elements of a tensor that enter the digest of the weights


def weights_digest(model: DenoisingModel) -> str | None:
    """Returns a digest that another training changes, in a moment for a model of any size.

    Up to 4096 evenly spaced elements of each tensor with its name, shape and dtype; the same on
    every device, since nothing is computed.
    """
    module = getattr(model, "network", None) or getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        return None
    parts: list[bytes] = []
    weights: Iterable[tuple[str, Tensor]] = module.state_dict().items()
    if isinstance(module, Transformer):
        weights = parts_of(module, weights)  # joined projections are the same weights
    for name, tensor in sorted(weights, key=lambda pair: pair[0]):
        parts += [f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), _bytes(tensor)]
    return digest(parts)


def digest(parts: Iterable[bytes]) -> str:
    """Returns sixteen hexadecimal digits that other bytes change."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    count, last = min(flat.numel(), _SAMPLED), max(flat.numel() - 1, 0)
    sampled = torch.linspace(0, last, count, dtype=torch.float64).long()
    sample = flat[sampled.to(flat.device)].cpu().contiguous()
    return sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b""
