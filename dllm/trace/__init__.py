"""What each step wrote: as tensors, as a record in a file, in a terminal, on a page."""

from __future__ import annotations

from dllm.state.trace import Trace

__all__ = ["Trace"]
