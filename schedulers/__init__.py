"""The unmasking rules: which masked columns a step commits, one method a file."""

from __future__ import annotations

if __name__ != "dllm.schedulers":
    raise ImportError("this folder is a part of dllm: import dllm.schedulers, not schedulers")

import sys

from dllm.registry import Registry
from dllm.schedulers.base import Needs, Scheduler, Setup
from dllm.state.window import Decision, View

registry: Registry[Scheduler] = Registry(sys.modules[__name__], Scheduler, "scheduler")  # type: ignore[type-abstract]

__all__ = ["Decision", "Needs", "Scheduler", "Setup", "View", "registry"]
