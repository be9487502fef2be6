"""The command line: `dllm generate`, `chat`, `eval`, `demo`, `methods`."""

from __future__ import annotations

from dllm.cli.main import main

__all__ = ["main"]
