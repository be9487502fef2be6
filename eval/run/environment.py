"""What a figure depends on beside the settings: weights, versions, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import dllm
from dllm.models.model import DenoisingModel
from dllm.models.speed.linear import is_narrow, parts_of
from dllm.models.transformer import Transformer

_SAMPLED = 4096  # elements of a tensor that enter the digest of the weights


@dataclass(frozen=True)
class Environment:
    """Where and with what answers were made."""

    weights: str | None  # digest of evenly spaced elements of each tensor; None: not a module
    revision: str | None  # commit of the hub's repository
    chat_template: str | None  # digest of the template
    attention: str | None  # what computes it
    device: str
    threads: int  # of torch on the CPU
    python: str
    torch: str
    transformers: str
    dllm: str
    commit: str | None  # of the checkout that dllm is in; "+" marks changed files


def environment_of(model: DenoisingModel) -> Environment:
    """Returns what there is now."""
    template = getattr(model.tokenizer, "chat_template", None)
    return Environment(
        weights=weights_digest(model),
        revision=getattr(model, "revision", None),
        chat_template=None if template is None else _digest([str(template).encode()]),
        attention=_attention(model),
        device=_device(model.device),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        dllm=dllm.__version__,
        commit=commit(),
    )


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
    if isinstance(module, Transformer) and not is_narrow(module):
        weights = parts_of(module, weights)  # joined projections are the same weights
    for name, tensor in sorted(weights, key=lambda pair: pair[0]):
        parts.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        parts.append(_bytes(tensor))
    return _digest(parts)


def _bytes(tensor: Tensor) -> bytes:
    if type(tensor) is not Tensor:  # of torchao, which has few of a tensor's operations
        tensor = tensor.dequantize()
    flat = tensor.detach().flatten()
    count, last = min(flat.numel(), _SAMPLED), max(flat.numel() - 1, 0)
    places = torch.linspace(0, last, count, dtype=torch.float64).long()
    sample = flat[places.to(flat.device)].cpu().contiguous()
    return sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b""


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _attention(model: Any) -> str | None:
    if hasattr(model, "network"):
        return "torch scaled_dot_product_attention"
    config = getattr(getattr(model, "module", None), "config", None)
    return getattr(config, "_attn_implementation", None)


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {os.cpu_count()} cores)"


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Returns the commit of the checkout that this code is in, None where it is installed."""
    root = Path(dllm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):  # no git here, or not our repository
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
