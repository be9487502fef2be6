"""Models: the project's own transformer for known families, a wrapper for everything else."""

from __future__ import annotations

from dllm.models.config import CheckpointError, ModelSpec, NetworkConfig
from dllm.models.loading import load, save
from dllm.models.model import DenoisingModel, HostedModel
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
