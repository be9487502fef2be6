"""Parallel decoding for diffusion language models: model x scheduler x cache, one loop."""

from __future__ import annotations

from dllm import cache, eval, schedulers  # noqa: A004 the folder has the name of the thing
from dllm.capacity import NotEnoughMemoryError
from dllm.generate import Stream, generate, stream
from dllm.loop import BrokenLogitsError
from dllm.metrics import Metrics
from dllm.models import HostedModel, ModelSpec, load, save, wrap
from dllm.output import GenerationInterrupted, GenerationOutput
from dllm.prompt_memory import PromptMemory
from dllm.prompts import Infill
from dllm.settings import Settings
from dllm.speed.speed_up import speed_up
from dllm.state.event import StepEvent
from dllm.trace import Trace

__version__ = "0.1.0"

__all__ = [
    "BrokenLogitsError",
    "GenerationInterrupted",
    "GenerationOutput",
    "HostedModel",
    "Infill",
    "Metrics",
    "ModelSpec",
    "NotEnoughMemoryError",
    "PromptMemory",
    "Settings",
    "StepEvent",
    "Stream",
    "Trace",
    "cache",
    "eval",
    "generate",
    "load",
    "save",
    "schedulers",
    "speed_up",
    "stream",
    "wrap",
]
