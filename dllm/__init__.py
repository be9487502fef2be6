"""Parallel decoding for diffusion language models: model x scheduler x cache, one loop."""

from __future__ import annotations

from dllm import cache, eval, schedulers  # noqa: A004 the folder has the name of the thing
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.decoding.prompt_memory import PromptMemory
from dllm.decoding.speculation import verifiers
from dllm.generate import Stream, generate, stream
from dllm.metrics import Metrics
from dllm.models import HostedModel, ModelSpec, load, save, wrap
from dllm.models.speed import speed_up
from dllm.output import GenerationInterrupted, GenerationOutput
from dllm.prompts import Infill
from dllm.settings import Settings
from dllm.state.trace import Trace
from dllm.state.window import StepEvent

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
    "verifiers",
    "wrap",
]
