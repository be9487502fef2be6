"""Models: the project's own transformer for known families, a wrapper for everything else."""

from __future__ import annotations

from dllm.models.config import ModelSpec, NetworkConfig
from dllm.models.errors import CheckpointError
from dllm.models.load import load
from dllm.models.model import DenoisingModel, HostedModel
from dllm.models.save import save
from dllm.models.wrap import WrappedModel, wrap

__all__ = [
    "CheckpointError",
    "DenoisingModel",
    "HostedModel",
    "ModelSpec",
    "NetworkConfig",
    "WrappedModel",
    "load",
    "save",
    "wrap",
]
