"""Parallel decoding for diffusion language models: model x scheduler x cache, one loop."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any


def _leave(*_: Any) -> None:
    """Ends the program in one line."""
    os.write(2, b"interrupted\n")
    os._exit(130)  # what a shell reports after Ctrl-C


# While the `dllm` command imports torch, which takes seconds, there is nothing to clean up and no
# traceback that would tell a user anything; the command takes Ctrl-C back when it begins.
_IS_COMMAND = Path(sys.argv[0]).stem == "dllm" or (sys.argv[0] == "-m" and "dllm" in sys.orig_argv)
if _IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)

if TYPE_CHECKING:
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

# Start-up time: torch is imported with the first name that is used. The same as above, by module.
_MODULES = {
    "dllm.decoding.loop": ("BrokenLogitsError",),
    "dllm.decoding.memory_limits": ("NotEnoughMemoryError",),
    "dllm.decoding.prompt_memory": ("PromptMemory",),
    "dllm.generate": ("Stream", "generate", "stream"),
    "dllm.infilling.gaps": ("Infill",),
    "dllm.metrics": ("Metrics",),
    "dllm.models": ("HostedModel", "ModelSpec", "load", "save", "wrap"),
    "dllm.models.speed": ("speed_up",),
    "dllm.output": ("Filled", "GenerationInterrupted", "GenerationOutput", "Tried"),
    "dllm.settings": ("Settings",),
    "dllm.state.trace": ("Trace",),
    "dllm.state.window": ("StepEvent",),
}
_ROOMS = {name: f"dllm.{name}" for name in ("cache", "constraints", "eval", "schedulers")}
_ROOMS["verifiers"] = "dllm.decoding.speculation.verifiers"
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

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


if not TYPE_CHECKING:  # else a misspelt name would be no error

    def __getattr__(name: str) -> Any:
        """Returns a public name, whose module is imported now."""
        if name in _ROOMS:
            value = importlib.import_module(_ROOMS[name])
        elif name in _WHERE:
            value = getattr(importlib.import_module(_WHERE[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        setattr(sys.modules[__name__], name, value)  # next time it is there
        return value


def __dir__() -> list[str]:
    """Lists the public names, imported or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose function `generate` has the name of the module that it comes from."""

    def __setattr__(self, name: str, value: Any) -> None:
        # An import of dllm.generate sets the module, and nobody could call it any more.
        if name == "generate" and isinstance(value, ModuleType):
            value = value.generate
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
