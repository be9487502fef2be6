"""Parallel decoding for diffusion language models: model x scheduler x cache, one loop."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any


def _leave(*_: Any) -> None:
    """Ends the program in one line."""
    os.write(2, b"interrupted\n")
    os._exit(130)  # what a shell reports after Ctrl-C


# While the `dllm` command imports torch, which takes seconds, there is nothing to clean up and no
# traceback that would tell a user anything; `main` takes Ctrl-C back.
_IS_COMMAND = Path(sys.argv[0]).stem == "dllm" or (sys.argv[0] == "-m" and "dllm" in sys.orig_argv)
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)

from dllm import cache, constraints, eval, schedulers  # noqa: A004 the folder has the name of the thing
from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.decoding.prompt_memory import PromptMemory
from dllm.decoding.speculation import verifiers
from dllm.generate import Stream, generate, stream
from dllm.infilling.gaps import Infill
from dllm.metrics import Metrics
from dllm.models import HostedModel, ModelSpec, load, save, wrap
from dllm.models.speed import speed_up
from dllm.output import Filled, GenerationInterrupted, GenerationOutput, Tried
from dllm.settings import Settings
from dllm.state.trace import Trace
from dllm.state.window import StepEvent

__version__ = "0.1.0"

__all__ = [
    "BrokenLogitsError",
    "Filled",
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
    "Tried",
    "cache",
    "constraints",
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
